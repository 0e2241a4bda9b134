"""One scored figure of the report, and the statistics of a class of them.

Errors are predicted / measured - 1 in percent; of published times they are those of the speed, so that + is
too much memory or too fast; of a CPU's clock those of the seconds. Rows of one measurement share its weight,
as everywhere (scores.py).
Checked by: unit/test_report_accuracy_proof.py (worked by hand).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from memcalc.accuracy.scores import quantile

#: Rows of a class that are named.
WORST: Final = 3


class Item(NamedTuple):
    """A figure. error, textbook: in percent; textbook None where no closed form answers it."""

    id: str
    said: str
    source: str
    error: float
    textbook: float | None = None
    weight: float = 1.0
    measured: float | None = None
    part: str = ""


class Class(NamedTuple):
    """Figures of one kind. group: the report's section; against: what they are held against."""

    group: str
    name: str
    against: str
    items: Sequence[Item]
    unit: str = "bytes"


def stats(items: Sequence[Item], of: Callable[[Item], float | None]) -> dict[str, Any] | None:
    """n, measurements, and in percent: median, mean, bias, p90, worst; None of nothing."""
    known = [(value, item.weight) for item in items if (value := of(item)) is not None]
    if not known:
        return None
    values, weights = [v for v, _ in known], [w for _, w in known]
    sizes, total = [abs(v) for v in values], sum(weights)
    return {
        "n": len(known),
        "measurements": round(total, 6),
        "median_pct": quantile(sizes, weights, 0.5),
        "mean_pct": sum(w * s for s, w in zip(sizes, weights, strict=True)) / total,
        "bias_pct": sum(w * v for v, w in known) / total,
        "p90_pct": quantile(sizes, weights, 0.9),
        "worst_pct": max(sizes),
    }


def ours(item: Item) -> float | None:
    """memcalc's error."""
    return item.error


def theirs(item: Item) -> float | None:
    """The closed form's."""
    return item.textbook


def scored(one: Class, reasons: dict[str, str]) -> dict[str, Any]:
    """A class as plain values: statistics of both, by part, and the rows that lie furthest out."""
    far = sorted(one.items, key=lambda item: (-abs(item.error), item.id))
    named = [item for item in far[:WORST] if abs(item.error) > 0]
    parts = dict.fromkeys(item.part for item in one.items if item.part)
    return {
        "group": one.group,
        "name": one.name,
        "against": one.against,
        "unit": one.unit,
        "n": len(one.items),
        "memcalc": stats(one.items, ours),
        "textbook": stats(one.items, theirs),
        "equal": sum(item.error == 0 for item in one.items),
        "sources": over_parts(one.items),
        "parts": {part: _part([i for i in one.items if i.part == part]) for part in parts},
        "worst": [
            {"id": i.id, "said": i.said, "source": i.source, "error_pct": i.error,
             "textbook_pct": i.textbook, "why": reasons.get(i.id)}
            for i in named
        ],
    }  # fmt: skip


def _part(items: Sequence[Item]) -> dict[str, Any]:
    return {"memcalc": stats(items, ours), "textbook": stats(items, theirs)}


def over_parts(items: Sequence[Item]) -> dict[str, Any] | None:
    """Each part's (a source's) mean error as one: {"n", "mean_pct", "bias_pct"}; None without parts."""
    names = dict.fromkeys(item.part for item in items if item.part)
    each = [stats([i for i in items if i.part == name], ours) for name in names]
    known = [one for one in each if one is not None]
    if not known:
        return None
    return {
        "n": len(known),
        "mean_pct": sum(one["mean_pct"] for one in known) / len(known),
        "bias_pct": sum(one["bias_pct"] for one in known) / len(known),
    }
