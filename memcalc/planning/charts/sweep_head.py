"""What a sweep or a scaling chart begins with: a title that holds where the number of GPUs varies.

Checked by: unit/test_chart_sweep.py, unit/test_chart_scaling.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memcalc.planning.cases import Point
from memcalc.planning.charts.head import head, model_on_gpu, models_on_gpus, results_of, setup_line


def sweep_head(kind: str, what: str, points: Sequence[Point]) -> dict[str, Any]:
    """The head of a chart; points: estimates that stand for all of them. what: `memory over seq`."""
    return head(kind, f"{where(points)}: {what}", setup_line(points), points)


def where(points: Sequence[Point]) -> str:
    """`llama-3.1-8b on h100-80gb`; how many GPUs is said only where all setups have as many."""
    results = results_of(points)
    if len({result.setup["gpus"] for result in results}) < 2:
        return model_on_gpu(points)
    gpus = ", ".join(dict.fromkeys(r.setup["gpu"] for r in results if r.setup["gpu"]))
    return models_on_gpus((result.model.name for result in results), [gpus])
