"""A sweep for the terminal: a table over one option, a map of numbers or characters over two.

80 columns; marks say what a cell is: `*` the best that fits, `~` tight, `!` does not fit, `x` refused.
Checked by: unit/test_chart_sweep.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from rich.text import Text

from memcalc.output.charts.sweep_cells import (
    FITS,
    MISSES,
    REFUSED,
    SAID,
    TIGHT,
    UNJUDGED,
    along,
    state,
    table,
    thinned,
)  # fmt: skip
from memcalc.output.charts.sweep_numbers import number, short
from memcalc.output.charts.text import ending, heading

if TYPE_CHECKING:
    from memcalc.output.console import Page

Found = Mapping[str, Any]
Row = Mapping[str, Any]
_MARKS: Final = {FITS: " ", TIGHT: "~", MISSES: "!", UNJUDGED: " ", REFUSED: "x"}
_STYLES: Final = {FITS: "green", TIGHT: "yellow", MISSES: "red", UNJUDGED: "", REFUSED: "dim"}
_BEST, _BEST_SAID = "*", "best"
#: Most rows of a table; most columns and rows of characters.
_ROWS, _COLUMNS = 40, 64
_STEPS: Final = "123456789"
#: Shortest bar worth its place in a table.
_SHORTEST: Final = 6


def sweep_page(sheet: Page, found: Found) -> None:
    """The sweep's object as text."""
    heading(sheet, found)
    sheet.line(found["says"], "bold red" if found["fits_count"] == 0 else "bold")
    sheet.line()
    if len(found["axes"]) == 1:
        _table(sheet, found)
    else:
        for panel in found["panels"]:
            _map(sheet, found, panel)
    _key(sheet, found)
    ending(sheet, found)


def _is_best(found: Found, row: Row) -> bool:
    return found["best"] is not None and found["best"]["labels"] == row["labels"]


def _table(sheet: Page, found: Found) -> None:
    """A row for each value, with a bar of its memory; long lists are thinned, the best stays."""
    axis, rows = found["axes"][0], along(found)
    panels = found["panels"]
    lead = panels[0]
    most = max([row[lead["key"]] or 0 for row in rows], default=0) or 1
    kept = set(thinned(len(rows), _ROWS))
    kept |= {i for i, row in enumerate(rows) if _is_best(found, row)}
    heads = [f"{panel['label']},\n{panel['unit']}" for panel in panels]
    said = [_BEST_SAID if _is_best(found, row) else SAID[state(row)] for row in rows]
    left = max(map(len, [axis["name"], *axis["texts"]]))
    taken = left + max(map(len, said)) + sum(len(line.split("\n")[0]) for line in heads)
    room = sheet.width - taken - 3 * (len(heads) + 2)
    lines: list[list[str | Text]] = []
    for i in sorted(kept):
        row = rows[i]
        length = round(max(room, 0) * max(0, row[lead["key"]] or 0) / most)
        bar = Text(("█" if sheet.fancy else "#") * length, style=_STYLES[state(row)])
        figures = [_number(panel, row, number) for panel in panels]
        lines.append([axis["texts"][i], *figures, *([bar] if room >= _SHORTEST else []), said[i]])
    blank = [""] if room >= _SHORTEST else []
    sheet.table([axis["name"], *(f">{line}" for line in heads), *blank, ""], lines)
    if len(kept) < len(rows):
        sheet.line(f"{len(kept)} of {len(rows):,} rows shown; --csv has all")
        sheet.line()


def _number(panel: Mapping[str, Any], row: Row, write: Any) -> str:
    """A row's amount in a panel's unit; nothing where its mark says that there is none to speak of."""
    amount, what = row[panel["key"]], state(row)
    if what == REFUSED or (what == MISSES and panel["kind"] == "rate"):
        return ""
    return "-" if amount is None else str(write(amount * panel["scale"]))


def _map(sheet: Page, found: Found, panel: Mapping[str, Any]) -> None:
    """Numbers where they go into the width, else a character a cell."""
    sheet.line(f"{panel['label']}, {panel['unit']}")
    rows = table(found)
    left = max(len(text) for text in [*found["axes"][1]["texts"], found["axes"][1]["name"]])
    for write in (number, short):
        texts = {at: _number(panel, row, write) for at, row in rows.items()}
        widest = max(map(len, [*texts.values(), *found["axes"][0]["texts"]]))
        if left + len(found["axes"][0]["texts"]) * (widest + 2) <= sheet.width:
            _grid(sheet, found, texts, left, widest)
            return
    _characters(sheet, found, panel, left)


def _down(found: Found) -> list[int]:
    """The y axis from the top line of the map on: large numbers on top, as in the picture."""
    count = len(found["axes"][1]["texts"])
    return list(range(count - 1, -1, -1)) if found["axes"][1]["numeric"] else list(range(count))


def _grid(
    sheet: Page, found: Found, texts: Mapping[tuple[int, int], str], left: int, widest: int
) -> None:
    x, y = found["axes"]
    rows = table(found)
    for at in _down(found):
        line = Text(y["texts"][at].rjust(left))
        for column in range(len(x["texts"])):
            row = rows.get((column, at))
            mark = " " if row is None else _BEST if _is_best(found, row) else _MARKS[state(row)]
            style = "" if row is None else _STYLES[state(row)]
            line.append(" " + texts.get((column, at), "").rjust(widest) + mark, style=style)
        sheet.console.print(line, soft_wrap=True)
    header = "".join(" " + text.rjust(widest) + " " for text in x["texts"])
    sheet.line(f"{y['name'].rjust(left)}{header}")
    sheet.line(f"{' ' * left}  {x['name']}")
    sheet.line()


def _characters(sheet: Page, found: Found, panel: Mapping[str, Any], left: int) -> None:
    """A digit a cell: 1 the smallest that is shown, 9 the largest; every n-th cell of large maps."""
    x, y = found["axes"]
    rows = table(found)
    columns, lines = thinned(len(x["texts"]), _COLUMNS), thinned(len(y["texts"]), _ROWS)
    marked = {REFUSED} if found["fits_count"] == 0 else {MISSES, REFUSED}
    inside = [
        row[panel["key"]]
        for row in rows.values()
        if row[panel["key"]] is not None and state(row) not in marked
    ]
    low, high = (min(inside), max(inside)) if inside else (0, 0)
    for at in [i for i in _down(found) if i in set(lines)]:
        line = Text(y["texts"][at].rjust(left) + " ")
        for column in columns:
            row = rows.get((column, at))
            if row is None:
                line.append(" ")
                continue
            what = state(row)
            mark = _BEST if _is_best(found, row) else _MARKS[what] if what in marked else ""
            line.append(mark or _step(row[panel["key"]], low, high), style=_STYLES[what])
        sheet.console.print(line, soft_wrap=True)
    ends = f"{x['texts'][columns[0]]} .. {x['texts'][columns[-1]]}"
    sheet.line(f"{' ' * left} {x['name']} {ends}; {y['name']} upwards"
               if y["numeric"] else f"{' ' * left} {x['name']} {ends}")  # fmt: skip
    if inside:
        scale = panel["scale"]
        sheet.line(
            f"{' ' * left} 1: {number(low * scale)}, 9: {number(high * scale)} {panel['unit']}"
        )
    sheet.line()


def _step(amount: float | None, low: float, high: float) -> str:
    if amount is None:
        return "-"
    share = (amount - low) / (high - low) if high > low else 1.0
    return _STEPS[min(len(_STEPS) - 1, int(share * len(_STEPS)))]


def _key(sheet: Page, found: Found) -> None:
    """What the marks mean; only those that are there."""
    if len(found["axes"]) == 1:
        return
    there = {state(row) for row in found["rows"]}
    said: Sequence[str] = [
        *([f"{_BEST} best that fits"] if found["best"] is not None else []),
        *(f"{_MARKS[what]} {SAID[what]}" for what in (TIGHT, MISSES, REFUSED) if what in there),
    ]
    if said:
        sheet.line("   ".join(said))
        sheet.line()
