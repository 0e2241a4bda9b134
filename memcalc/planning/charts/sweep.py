"""The sweep chart's object: rows over one axis or two, what fits, the best of it, and what is missing.

The picture and the text are made from this object alone. Rows are `planning/quick.py: quick_rows`:
best is the row that fits and is fastest a GPU (or best by the quantity asked for); where nothing fits
the row that misses least is named with by how much. Without a GPU there is no verdict.
Checked by: unit/test_chart_sweep.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memcalc.planning.charts.sweep_axes import Axis, shared
from memcalc.planning.charts.sweep_values import DEFAULT_RATE, Value, panels_of
from memcalc.planning.rows import SIMULATED
from memcalc.units import gib

Row = dict[str, Any]
_REASONS = 3


def sweep(
    head: Mapping[str, Any], axes: Sequence[Axis], rows: Sequence[Row], value: Value | None = None
) -> dict[str, Any]:
    """The JSON object of a sweep.

    head: `planning/charts/head.py: head`. axes: x, or x and y. rows: one for each point of the axes.
    value: the quantity asked for (--value); None: memory and throughput. Bytes, seconds and shares as
    in the rows.
    """
    rows = list(rows)
    priced = [row for row in rows if row["reason"] is None]
    fitting = [row for row in priced if row["fits"]]
    judged = any(row["fits"] is not None for row in priced)
    by = DEFAULT_RATE if value is None or value.better == "none" else value
    nearest = nearest_miss(priced)
    best = best_row(fitting, by)
    found = {
        **head,
        "axes": [axis.to_dict() for axis in axes],
        "panels": [panel._asdict() for panel in panels_of(value, rows)],
        "best": best,
        "best_by": None if best is None else by._asdict(),
        "count": len(rows),
        "fits_count": len(fitting) if judged else None,
        "refused_count": len(rows) - len(priced),
        "usable_bytes": shared(priced, "usable_bytes"),
        "smallest_need": nearest,
        "misses_by_bytes": None if fitting or not judged else missing(nearest),
        "notes": [*_reserved(priced), *refusals(rows)],
        "rows": rows,
    }
    return {**found, "says": _says(found, by)}


def best_row(fitting: Sequence[Row], by: Value) -> Row | None:
    """The row with the best of a quantity; of equals the one that needs least memory."""
    known = [row for row in fitting if row[by.key] is not None]
    sign = -1 if by.better == "low" else 1
    return max(known, key=lambda row: (sign * row[by.key], -(need_of(row) or 0)), default=None)


def need_of(row: Mapping[str, Any]) -> int | None:
    """Bytes a row needs: what the driver reports, else what PyTorch allocates."""
    used: int | None = row["device_used_bytes"]
    return used if used is not None else row["peak_allocated_bytes"]


def nearest_miss(priced: Sequence[Row]) -> Row | None:
    """The row with the most room, or, where no GPU is named, the one that needs least."""
    known = [row for row in priced if need_of(row) is not None]
    return max(
        known, key=lambda row: (row["usable_bytes"] or 0) - (need_of(row) or 0), default=None
    )


def missing(row: Mapping[str, Any] | None) -> int | None:
    """Bytes a row needs beyond what the GPU gives; 0 where something else than the GPU is too small."""
    if row is None or row["usable_bytes"] is None:
        return None
    return max(0, (need_of(row) or 0) - int(row["usable_bytes"]))


def _says(found: Mapping[str, Any], by: Value) -> str:
    """The finding, in one line."""
    if found["refused_count"] == found["count"]:
        return f"all {found['count']:,} refused: {found['rows'][0]['reason']}"
    refused = f", {found['refused_count']:,} refused" if found["refused_count"] else ""
    if found["fits_count"] is None:
        return f"no GPU named: memory without a verdict{refused}"
    if not found["fits_count"]:
        return _nothing(found) + refused
    count = f"{found['fits_count']:,} of {found['count']:,} fit{refused}"
    best = found["best"]
    if best is None:
        return count
    rate = by.said(best) + (" a GPU" if by == DEFAULT_RATE and best["gpus"] != 1 else "")
    tight = [] if best["verdict"] != "tight" else ["tight"]
    if (best["headroom_bytes"] or 0) < 0:
        tight = ["with its cache freed"]
    return f"best that fits: {', '.join([place_of(best), rate, gib(need_of(best) or 0), *tight])}; {count}"


def _nothing(found: Mapping[str, Any]) -> str:
    row, over = found["smallest_need"], found["misses_by_bytes"]
    if row is None:
        return "nothing fits"
    if not over:
        return f"nothing fits: {row['note'] or 'what is short is not GPU memory'} ({place_of(row)})"
    return (
        f"nothing fits: the nearest, {place_of(row)}, needs {gib(need_of(row) or 0)} of "
        f"{gib(row['usable_bytes'])} usable, {gib(over)} too much"
    )


def _reserved(priced: Sequence[Row]) -> list[str]:
    """How reserved bytes are known, where not every row's come from a replay of its own."""
    ways = dict.fromkeys(row["reserved"] for row in priced if row["reserved"])
    return [f"reserved bytes: {way}" for way in ways if way != SIMULATED]


def refusals(rows: Sequence[Row]) -> list[str]:
    """Why rows were refused, each reason once, the first few."""
    reasons = list(dict.fromkeys(row["reason"] for row in rows if row["reason"]))
    more = [f"{len(reasons) - _REASONS} more reasons"] if len(reasons) > _REASONS else []
    return [f"refused: {reason}" for reason in reasons[:_REASONS]] + more


def place_of(row: Mapping[str, Any]) -> str:
    """Where a row lies, as `micro-batch 4, seq 8k`."""
    return ", ".join(f"{name} {text}" for name, text in row["labels"].items())
