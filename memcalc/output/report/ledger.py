"""The ledger on the page: an op a row with its bytes, FLOPs, seconds and formula, and their sums.

Checked by: cli/test_report.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memcalc.output.report.markup import (
    NONE,
    Cell,
    Column,
    Sheet,
    bullets,
    counted,
    esc,
    flops,
    seconds,
    size,
    table,
)

Row = Mapping[str, Any]
_TIMES = ("forward_s", "backward_s", "recompute_s")
_WORDS = "Sums over all layers of one micro-batch. Formulas: the bytes that one layer saves for backward."


def ledger(found: Mapping[str, Any]) -> str:
    """The table, every column sortable, and the value of each letter of the formulas."""
    told = found["ledger"]
    timed = told["totals"]["forward_s"] is not None
    again = bool(told["totals"]["recompute_s"])
    shown = _TIMES[: 2 + again] if timed else ()
    columns = [
        Column("op"),
        Column("part"),
        Column("layers", number=True),
        Column("parameters", number=True),
        Column("saved", number=True, said="bytes kept from forward to backward"),
        Column("FLOPs forward", number=True),
        Column("FLOPs backward", number=True),
        *(Column(f"{name.removesuffix('_s')} time", number=True) for name in shown),
        *([Column("bound", said="what most of its time goes to")] * timed),
        Column("saved in a layer", said="formula, in bytes"),
    ]
    rows = [_row(row, shown, timed) for row in told["rows"]]
    foot = _foot(told["totals"], shown, timed)
    sheet = Sheet("ledger", sortable=True, filtered="Find an op:")
    where = ", ".join(f"{name} = {value:,}" for name, value in told["dims"].items())
    body = table("The ledger of one micro-batch", columns, rows, foot, sheet)
    notes = bullets(told["notes"])
    return f'<p class="muted">{_WORDS}</p>\n{notes}{body}<p class="muted">where {esc(where)}</p>\n'


def _row(row: Row, shown: tuple[str, ...], timed: bool) -> list[Cell]:
    formula = row["formulas"].get("saved bytes", "")
    return [
        Cell(row["op"]),
        Cell(row["part"]),
        Cell(f"{row['layers']:,}" if row["layers"] else NONE, row["layers"]),
        counted(row["params"]),
        size(row["saved_bytes"]) if row["saved_bytes"] else Cell(NONE, 0),
        flops(row["forward_flops"]),
        flops(row["backward_flops"]),
        *(seconds(row[name]) for name in shown),
        *([Cell(row["bound"] or NONE)] * timed),
        Cell(formula, markup=f"<code>{esc(formula)}</code>" if formula else NONE, mark="said"),
    ]


def _foot(totals: Row, shown: tuple[str, ...], timed: bool) -> list[Cell]:
    return [
        Cell("sum"),
        Cell(""),
        Cell(""),
        counted(totals["params"]),
        size(totals["saved_bytes"]),
        flops(totals["forward_flops"]),
        flops(totals["backward_flops"]),
        *(seconds(totals[name]) for name in shown),
        *([Cell("")] * timed),
        Cell(""),
    ]
