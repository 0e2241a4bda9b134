"""Each operator's predicted seconds beside the measured ones, over a step. No torch.

The profiler costs time of its own, most on a CPU and for small kernels, so these rows are shown and
not judged. Checked by: harness/test_op_comparison.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

#: What the estimate knows as one sum, by its name in a profile.
_OPTIMIZER = ("optimizer", "step")


def with_predictions(
    measured: Iterable[Mapping[str, Any]], time: Mapping[str, Any], micro_batches: int
) -> list[dict[str, Any]]:
    """The measured rows with `predicted_s`, None where nothing is predicted; then what only is.

    measured: op, direction (forward | recompute | backward | step), calls, seconds of a step. time: of
    an estimate's JSON, whose `ops` are those of one micro-batch.
    """
    told = _predicted(time, micro_batches)
    rows = [dict(row) for row in measured]
    for row in rows:
        row["predicted_s"] = told.pop((row["op"], row["direction"]), None)
    rows += [
        {"op": op, "direction": direction, "calls": 0, "seconds": 0.0, "predicted_s": seconds}
        for (op, direction), seconds in told.items()
        if seconds > 0
    ]
    return rows


def _predicted(time: Mapping[str, Any], micro_batches: int) -> dict[tuple[str, str], float]:
    found: dict[tuple[str, str], float] = {}
    for one in time.get("ops") or ():
        key = one["op"], one["direction"]
        found[key] = found.get(key, 0.0) + micro_batches * one["seconds"]
    if time.get("optimizer_s") is not None:
        found[_OPTIMIZER] = time["optimizer_s"]
    return found
