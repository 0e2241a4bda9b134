"""Charts as text: bars and areas for the terminal, blocks in colour there, letters in a pipe.

Every category of memory has a colour and a letter, the same in every page.
Checked by: unit/test_charts_text.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from rich.text import Text

from memcalc.output.charts.palette import name_of
from memcalc.output.console import Page
from memcalc.units import GIB

#: Category -> (colour on a terminal, letter of the bar in a pipe).
COLOURS: Final = {
    "parameters": ("blue", "P"), "gathered": ("bright_blue", "S"), "gradients": ("cyan", "G"),
    "optimizer": ("magenta", "O"), "activations": ("green", "A"), "loss": ("yellow", "L"),
    "temporary": ("red", "T"), "buffers": ("white", "B"), "workspace": ("bright_black", "W"),
    "rounding": ("grey50", "R"), "overhead": ("grey62", "U"), "communication": ("grey46", "N"),
    "context": ("grey35", "C"),
}  # fmt: skip
_BLOCK = "█"
_GAP = 2


def heading(page: Page, found: Mapping[str, Any]) -> None:
    """Title and second line of a chart's object."""
    page.line(str(found["title"]), "bold")
    if found.get("subtitle"):
        page.line(str(found["subtitle"]))
    page.line()


def ending(page: Page, found: Mapping[str, Any]) -> None:
    """The source line."""
    page.line(str(found["source"]), "dim")


def stacked(page: Page, parts: Mapping[str, float], total: float, width: int) -> Text:
    """One bar: each category gets its share, to a character; `total` of the parts' unit is `width`."""
    bar = Text()
    seen: float = 0
    drawn = 0
    for name, size in parts.items():
        colour, letter = COLOURS[name]
        seen += size
        until = round(seen / total * width) if total else 0
        bar.append((_BLOCK if page.fancy else letter) * max(0, until - drawn), style=colour)
        drawn = max(drawn, until)
    return bar


def mark(page: Page, category: str) -> Text:
    """What stands for a category in bars: its block, or its letter."""
    colour, letter = COLOURS[category]
    return Text(_BLOCK if page.fancy else letter, style=colour)


def key(page: Page, categories: Iterable[str]) -> list[Text]:
    """Lines of a legend, `P parameters  G gradients`, broken between names."""
    lines: list[Text] = []
    for category in categories:
        entry = mark(page, category) + Text(f" {name_of(category)}")
        if lines and len(lines[-1]) + _GAP + len(entry) <= page.width:
            lines[-1].append(" " * _GAP).append_text(entry)
        else:
            lines.append(entry)
    return lines


def put_key(page: Page, categories: Iterable[str]) -> None:
    """Print the legend."""
    for line in key(page, categories):
        page.console.print(line)


def bars(page: Page, rows: Sequence[tuple[str, float, str]], style: str = "blue") -> None:
    """Horizontal bars: label, bar, text. The largest value takes what the width leaves; negative: none."""
    if not rows:
        return
    most = max((value for _, value, _ in rows), default=0.0)
    labels = [shortened(label, page.width // 2) for label, _, _ in rows]
    left, right = max(map(len, labels)), max(len(text) for _, _, text in rows)
    room = max(8, page.width - left - right - 2 * _GAP)
    for label, (_, value, text) in zip(labels, rows, strict=True):
        count = round(value / most * room) if most > 0 else 0
        line = Text(label.ljust(left + _GAP))
        line.append((_BLOCK if page.fancy else "#") * max(0, count), style=style)
        line.append(" " * (room - max(0, count) + _GAP) + text.rjust(right))
        page.console.print(line)


def area(
    page: Page,
    columns: Sequence[Mapping[str, float]],
    height: int = 12,
    unit: str = "GiB",
    scale: float = GIB,
) -> int:
    """Stacked columns side by side with an axis at the left, in `unit` of `scale` (bytes) each.

    Returns the width of the axis.
    """
    top = max((sum(column.values()) for column in columns), default=0.0)
    if top <= 0:
        return 0
    cells = [_column(page, column, top, height) for column in columns]
    labels = {0: f"{top / scale:,.1f} {unit}", height - 1: "0"}
    labels[height // 2] = f"{top * (height - height // 2) / height / scale:,.1f}"
    left = max(map(len, labels.values()))
    for row in range(height):
        line = Text(labels.get(row, "").rjust(left) + " ")
        for cell in cells:
            line.append_text(cell[height - 1 - row])
        page.console.print(line)
    return left + 1


def _column(page: Page, parts: Mapping[str, float], top: float, height: int) -> list[Text]:
    """One column from the bottom up, a character a row."""
    cells: list[Text] = []
    seen = 0.0
    for name, size in parts.items():
        seen += size
        until = round(seen / top * height)
        cells += [mark(page, name)] * (until - len(cells))
    return cells + [Text(" ")] * (height - len(cells))


def shortened(label: str, width: int) -> str:
    """A label in `width` characters, the middle left out where it is longer."""
    if len(label) <= width:
        return label
    left = (width - 2) // 2
    return f"{label[:left]}..{label[len(label) - (width - 2 - left) :]}"
