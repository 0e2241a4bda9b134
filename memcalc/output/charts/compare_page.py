"""A comparison's picture as text: a bar of memory for each setup, and how fast it is or what it lacks.

From the chart's object alone; `memcalc compare` has the whole table. Checked by: cli/test_compare.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from memcalc.output.charts.text import bars, ending, heading
from memcalc.output.compare_cells import amount_text, short_text
from memcalc.output.compare_text import band_lines
from memcalc.output.console import Page
from memcalc.units import GIB

Found = Mapping[str, Any]
Row = Mapping[str, Any]


def compare_page(page: Page, found: Found) -> None:
    """The same as text: a bar of memory a row, its verdict and speed; then what was refused."""
    heading(page, found)
    rows = [row for row in found["rows"] if row["reason"] is None]
    bars(page, [(_label(row), _need(row), _line(row)) for row in rows])
    for row in found["rows"]:
        if row["reason"] is not None:
            page.line(f"refused: {_label(row)}: {row['reason']}")
    page.line()
    for line in _notes(found):
        page.line(line)
    ending(page, found)


def _notes(found: Found) -> Iterator[str]:
    yield "bars: memory the driver reports, on the GPU that needs most"
    yield from band_lines(found)
    if found["left_out"]:
        yield f"{found['left_out']:,} of {found['count']:,} rows left out by --top"


def _label(row: Row) -> str:
    return ", ".join(row["labels"].values()) or str(row["model"])


def _need(row: Row) -> float:
    return float(row["device_used_bytes"] or row["peak_allocated_bytes"] or 0)


def _line(row: Row) -> str:
    speed = row["tokens_per_s_per_gpu"]
    need = f"{_need(row) / GIB:,.2f} GiB"
    if row["fits"] is False:
        short = -(row["headroom_bytes"] or 0)
        return f"{need}, short {short_text(short)}" if short > 0 else f"{need}, does not fit"
    return need if speed is None else f"{need}, {amount_text(speed, 'rate')} tokens/s a GPU"
