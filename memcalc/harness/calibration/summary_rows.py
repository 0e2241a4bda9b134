"""What the makers of summary rows share: picking and grouping points, rates, the spread of one point.

No torch. Checked by: harness/test_calibration_summary.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

Row = dict[str, Any]


def of_kind(points: Iterable[Row], kind: str, **wanted: Any) -> list[Row]:
    """Points of a kind whose fields have these values."""
    return [
        p for p in points
        if p["kind"] == kind and all(p.get(name) == value for name, value in wanted.items())
    ]  # fmt: skip


def groups(points: Iterable[Row], *names: str) -> dict[tuple[Any, ...], list[Row]]:
    """Points by the values of some fields, in order of appearance."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for point in points:
        found.setdefault(tuple(point.get(name) for name in names), []).append(point)
    return found


def single(point: Row) -> Row:
    """The error of a figure that is one point: half of p90 - p10 over the median."""
    spread = (point["p90_s"] - point["p10_s"]) / 2 / point["median_s"]
    return {"n": 1, "relative_spread": spread}


def rate(name: str, inverse: float) -> Row:
    """A rate from its inverse; none where the points show no such cost."""
    return {name: 1 / inverse} if inverse > 0 else {}


def copy_bytes_per_s(points: Sequence[Row]) -> float | None:
    """Bytes/s of the largest copy: what stands for memory bandwidth in the formulas."""
    copies = of_kind(points, "bandwidth", what="copy")
    if not copies:
        return None
    return float(max(copies, key=lambda p: p["tensor_bytes"])["bytes_per_s"])
