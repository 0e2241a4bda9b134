"""Setups beside each other: any rows of planning/rows.py, as a table that sorts by every column.

The fastest that fits is bold; what does not fit says by how much, what cannot be priced says why.
Checked by: cli/test_report.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memcalc.output.report.markup import NONE, Cell, Column, Sheet, esc, seconds, share, size, table
from memcalc.units import gib

Row = Mapping[str, Any]


def comparison(told: Mapping[str, Any], command: str) -> str:
    """The table of a comparison. told: the object of planning/charts/compare.py. command: prices the setup
    that the page is about, whose row is marked."""
    axes, rows = told["options"], told["rows"]
    best = None if told["best"] is None else told["best"]["command"]
    marks = {best: "row-best", command: "row-here"} | (
        {best: "row-best here"} if best == command else {}
    )
    costs = told["price_usd_per_gpu_hour"] is not None
    columns = [
        *(Column(name.replace("-", " "), number=_numeric(rows, name)) for name in axes),
        Column("verdict"),
        Column("driver-used", number=True),
        Column("headroom", number=True),
        Column("step", number=True),
        Column("tokens/s", number=True),
        Column("tokens/s a GPU", number=True),
        Column("MFU", number=True, said="model FLOPs with the full square of attention"),
        *([Column("USD / M tokens", number=True, said="the middle of the price range")] * costs),
    ]
    cells = [_cells(row, axes, marks.get(row["command"], ""), costs) for row in rows]
    return table("Setups compared", columns, cells, sheet=Sheet("setups", sortable=True))


def _cells(row: Row, axes: Sequence[str], mark: str, costs: bool) -> list[Cell]:
    labels = [_label(row["labels"].get(name, NONE)) for name in axes]
    labels[0] = labels[0]._replace(mark=mark)
    found = [
        *labels,
        _verdict(row),
        size(row["device_used_bytes"]),
        size(row["headroom_bytes"]),
        seconds(row["step_s"]),
        _number(row["tokens_per_s"], ",.0f"),
        _number(row["tokens_per_s_per_gpu"], ",.0f"),
        share(row["mfu"]),
    ]
    return [*found, _number(row["usd_per_million_tokens"], ".3g")] if costs else found


def _label(text: str) -> Cell:
    """A label as it was stated; a number of an option sorts as one."""
    return Cell(text, _as_number(text))


def _as_number(text: str) -> float | None:
    """`4`, `8k`: the number an option's text is, None where it is a name."""
    digits = text[:-1] if text[-1:] in ("k", "K") else text
    try:
        return float(digits) * (1024 if digits != text else 1)
    except ValueError:
        return None


def _numeric(rows: Sequence[Row], name: str) -> bool:
    return all(_as_number(row["labels"].get(name, "")) is not None for row in rows)


def _verdict(row: Row) -> Cell:
    if row["reason"] is not None:
        return Cell(row["reason"], mark="muted")
    if row["fits"] is None:
        return Cell(NONE)
    if row["fits"]:
        tight = row["verdict"] == "tight"
        return Cell("tight" if tight else "fits", mark="warn" if tight else "good")
    room = row["headroom_bytes"]
    lacking = f"short by {gib(-room)}" if room is not None and room < 0 else "short of host memory"
    return Cell(lacking, markup=f'<span class="bad">{esc(lacking)}</span>')


def _number(value: float | None, form: str) -> Cell:
    return Cell(NONE) if value is None else Cell(format(value, form), value)
