"""Cells of a comparison: how every kind of column is written, and which cell is the best of its column.

From the comparison's object alone (planning/charts/compare.py). Checked by: cli/test_compare.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memcalc.units import GIB, gib

Row = Mapping[str, Any]
Column = Mapping[str, Any]
_UNKNOWN = "-"
_VERDICTS = {"fits": "fits", "tight": "tight", "does-not-fit": "does not fit"}


def cell(row: Row, column: Column) -> str:
    """The text of a cell, without its unit where the heading has it."""
    kind, key = column["kind"], column["key"]
    if kind == "label":
        return str(row["labels"].get(key, ""))
    value = row[key]
    if value is None:
        return _UNKNOWN
    if kind == "fits":
        return verdict_text(row)
    if kind in ("word", "count"):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return amount_text(value * column["scale"], kind)


def amount_text(value: float, kind: str) -> str:
    """A number as its column shows it: GiB with two decimals, rates whole, shares in per cent."""
    if kind == "amount":
        return f"{value:,.2f}"
    if kind == "share":
        return f"{value:.1f}%"
    if kind == "seconds":
        from memcalc.output.time_text import duration

        return duration(value)
    if kind == "usd":
        return f"{value:,.2f}" if value >= 10 else f"{value:#.3g}"
    return f"{value:,.0f}" if value >= 100 else f"{value:,.4g}"


def verdict_text(row: Row) -> str:
    """`fits`, `tight`, or by how much it does not: `short 12.30 GiB`."""
    headroom = row["headroom_bytes"]
    if row["verdict"] == "does-not-fit" and headroom is not None and headroom < 0:
        return f"short {short_text(-headroom)}"
    return _VERDICTS.get(row["verdict"], _UNKNOWN)


def short_text(missing_bytes: float) -> str:
    """Bytes that are missing, in GiB with one decimal from a tenth of one on."""
    if missing_bytes < GIB / 10:
        return gib(missing_bytes)
    return f"{missing_bytes / GIB:,.1f} GiB"


def is_best(found: Mapping[str, Any], row: Row, column: Column) -> bool:
    """Whether a row that may be chosen has its column's best value."""
    best = found["best_values"].get(column["key"])
    if best is None or row["reason"] is not None or row["fits"] is False:
        return False
    return bool(row[column["key"]] == best)


def is_right(column: Column) -> bool:
    """Whether a column's cells are numbers, which stand at the right."""
    return column["kind"] in ("amount", "rate", "share", "seconds", "usd", "count")
