"""HTML by hand: escaped text, tables, lists. Whatever came from a user passes through `esc`.

A cell may carry a value beside its text: tables sort by the value, never by what is shown.
Checked by: cli/test_report.py (hostile names, well-formed tables, sorting in a browser).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

from memcalc.output.time_text import duration
from memcalc.units import count_text, gib, si

NONE = "–"


class Cell(NamedTuple):
    """Text of a cell. value: what it sorts by. markup: HTML in place of the text. mark: a CSS class,
    of the whole row where it begins with row-."""

    text: str
    value: float | str | None = None
    markup: str = ""
    mark: str = ""


class Column(NamedTuple):
    """A column's head. number: right-aligned and sorted as numbers. said: explained on hover."""

    head: str
    number: bool = False
    said: str = ""


class Sheet(NamedTuple):
    """How a table behaves. name: its id. sortable: by its heads, in a browser. filtered: what a search
    field above it is called."""

    name: str = ""
    sortable: bool = False
    filtered: str = ""


def esc(text: object) -> str:
    """Text for HTML: escaped, and no control characters or half characters of a name."""
    shown = "".join(c if c.isprintable() or c == "\n" else "?" for c in str(text))
    return escape(shown, quote=True)


def heads(*names: str) -> list[Column]:
    """Columns from words; those that start with > hold numbers."""
    return [Column(name.lstrip(">"), name.startswith(">")) for name in names]


def table(
    caption: str,
    columns: Sequence[Column],
    rows: Iterable[Sequence[Cell | str]],
    foot: Sequence[Cell | str] | None = None,
    sheet: Sheet | None = None,
) -> str:
    """A table whose first column heads its rows, inside a box that scrolls sideways when it must."""
    sheet = sheet or Sheet()
    top = "".join(
        f'<th scope="col"{_class(column)}{_title(column.said)}>{esc(column.head)}</th>'
        for column in columns
    )
    body = "\n".join(_row(columns, row) for row in rows)
    end = "" if foot is None else f"\n<tfoot>\n{_row(columns, foot)}\n</tfoot>"
    ways = (f' id="{sheet.name}"' if sheet.name else "") + (
        ' class="dense" data-sortable' if sheet.sortable else ""
    )
    box = f' tabindex="0" role="region" aria-label="{esc(caption)}"' if sheet.sortable else ""
    search = _search(sheet) if sheet.filtered else ""
    return (
        f'{search}<div class="scroll"{box}>\n<table{ways}>\n<caption>{esc(caption)}</caption>\n'
        f"<thead>\n<tr>{top}</tr>\n</thead>\n<tbody>\n{body}\n</tbody>{end}\n</table>\n</div>\n"
    )


def _search(sheet: Sheet) -> str:
    """A search field over the rows; a script shows it, for without one it does nothing."""
    return (
        f'<p class="filter" hidden><label for="{sheet.name}-filter">{esc(sheet.filtered)}</label> '
        f'<input type="search" id="{sheet.name}-filter" data-filters="{sheet.name}" '
        f'autocomplete="off" spellcheck="false"> <output for="{sheet.name}-filter"></output></p>\n'
    )


def _row(columns: Sequence[Column], row: Sequence[Cell | str]) -> str:
    cells = [cell if isinstance(cell, Cell) else Cell(cell) for cell in row]
    whole = "".join(
        _cell(column, cell, first=not number)
        for number, (column, cell) in enumerate(zip(columns, cells, strict=True))
    )
    marks = [cell.mark.removeprefix("row-") for cell in cells if cell.mark.startswith("row-")]
    return f'<tr class="{" ".join(marks)}">{whole}</tr>' if marks else f"<tr>{whole}</tr>"


def _cell(column: Column, cell: Cell, first: bool) -> str:
    classes = [*(["n"] if column.number else []), *([] if cell.mark[:4] == "row-" else [cell.mark])]
    named = " ".join(name for name in classes if name)
    ways = (f' class="{named}"' if named else "") + (
        "" if cell.value is None else f' data-v="{esc(cell.value)}"'
    )
    inside = cell.markup or esc(cell.text)
    return f'<th scope="row"{ways}>{inside}</th>' if first else f"<td{ways}>{inside}</td>"


def _class(column: Column) -> str:
    return ' class="n"' if column.number else ""


def _title(said: str) -> str:
    return f' title="{esc(said)}"' if said else ""


def pairs(rows: Iterable[tuple[str, str]]) -> str:
    """A description list of names and values."""
    inside = "".join(
        f"<div><dt>{esc(name)}</dt><dd>{esc(value)}</dd></div>" for name, value in rows
    )
    return f'<dl class="pairs">{inside}</dl>\n'


def bullets(lines: Iterable[str]) -> str:
    """A list of sentences; nothing for none."""
    inside = "".join(f"<li>{esc(line)}</li>" for line in lines)
    return f"<ul>{inside}</ul>\n" if inside else ""


def size(value: int | None) -> Cell:
    """Bytes in GiB, MiB or KiB."""
    return Cell(NONE) if value is None else Cell(gib(value), value)


def whole(value: int | None) -> Cell:
    """An exact integer with thousands separators."""
    return Cell(NONE) if value is None else Cell(f"{value:,}", value)


def seconds(value: float | None) -> Cell:
    """A duration; a dash where nothing runs or nothing is known."""
    return Cell(NONE, value) if not value else Cell(duration(value), value)


def share(value: float | None) -> Cell:
    """A share as per cent."""
    return Cell(NONE) if value is None else Cell(f"{value:.1%}", value)


def counted(value: int) -> Cell:
    """Elements, as people say them; a dash for none."""
    return Cell(count_text(value) if value else NONE, value)


def flops(value: int) -> Cell:
    """FLOPs with a decimal prefix; a dash for none."""
    return Cell(si(value, "FLOP") if value else NONE, value)
