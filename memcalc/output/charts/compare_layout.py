"""Where the rows of a comparison's picture are: labels in columns at the left, each row as high as it needs.

Distances are inches from the top of the first row, so that text and bars keep their size however many
rows there are. From the chart's object alone. Checked by: unit/test_chart_compare.py.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from memcalc.output.charts import house
from memcalc.output.console import plain_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Found = Mapping[str, Any]
Row = Mapping[str, Any]
LABEL_PT: Final = 8.5
_LINE, _ROW, _GAP, _BETWEEN = 0.14, 0.24, 0.14, 0.2  # inches
_WRAP: Final = 30  # characters of a label's line
_LINES: Final = 3


class Place(NamedTuple):
    """A row, its middle and height in inches, and the lines of its labels, a text for each column."""

    row: Row
    middle: float
    height: float
    labels: tuple[str, ...]


class Layout(NamedTuple):
    """names: headings of the label columns; lefts: where each begins; label_inches: all they take.

    reason_inches: what the columns at the right are wide, which a refusal's reason may fill.
    """

    names: tuple[str, ...]
    lefts: tuple[float, ...]
    label_inches: float
    places: tuple[Place, ...]
    height: float

    @property
    def breaks(self) -> int:
        """Line breaks of the tallest heading."""
        return max(name.count("\n") for name in self.names)


def layout(figure: Figure, found: Found, width: float) -> Layout:
    """Rows with their places, for a figure of this many inches."""
    rows = found["rows"][: found["drawn"]]
    options = [name for name in found["options"] if any(row["labels"].get(name) for row in rows)]
    names = options or ["model"]
    heads = tuple(name.replace("-", "-\n", 1) if len(name) > 8 else name for name in names)
    texts = [tuple(_wrapped(_text(row, name)) for name in names) for row in rows]
    widths = [
        max(_inches(figure, line) for text in (head, *column) for line in text.split("\n"))
        for head, column in zip(heads, zip(*texts, strict=True), strict=True)
    ]
    lefts = [sum(widths[:at]) + _GAP * at for at in range(len(widths))]
    total = sum(widths) + _GAP * len(widths)
    places, top, last = [], 0.0, None
    for row, labels in zip(rows, texts, strict=True):
        state = row["reason"] is not None, row["fits"] is False
        top += _BETWEEN if last is not None and state != last else 0.0
        last = state
        lines = max(label.count("\n") + 1 for label in labels)
        if row["reason"] is not None:
            lines = max(lines, len(reason_lines(row, width - total)))
        height = max(_ROW, _LINE * lines + 0.1)
        places.append(Place(row, top + height / 2, height, labels))
        top += height
    return Layout(heads, tuple(lefts), total, tuple(places), top)


def heights(figure: Figure, found: Found, laid: Layout) -> float:
    """Inches of the figure: its rows, what stands above them, and the axis and source line below."""
    width = (figure.get_size_inches()[0] - 0.2) * figure.dpi
    lines = sum(
        min(4, -(-house.text_width(figure, text, size, weight) // (0.97 * width)))
        for text, size, weight in (
            (found["title"], house.TITLE_PT, "bold"), (found["subtitle"], house.TEXT_PT, "normal"),
        ) if text
    )  # fmt: skip
    legend = sum(one.get_window_extent().height for one in figure.legends) / figure.dpi
    headings = 0.16 * (laid.breaks + 1) + 0.1
    return 0.2 + 0.2 * float(lines) + legend + 0.2 + headings + laid.height + 0.13 + 0.62


def reason_lines(row: Row, inches: float) -> Sequence[str]:
    """Why a row was refused, in at most three lines of a width."""
    lines = textwrap.wrap(
        plain_text(f"refused: {row['reason']}"), max(24, int((inches - 0.3) * 15.5))
    )
    return lines if len(lines) <= _LINES else [*lines[: _LINES - 1], f"{lines[_LINES - 1]} ..."]


def _text(row: Row, name: str) -> str:
    text = row["labels"].get(name) or (row["model"] if name == "model" else "") or ""
    return plain_text(str(text))


def _wrapped(label: str) -> str:
    """A label in lines, broken between the options of a setup."""
    lines: list[str] = []
    for part in label.replace(" --", "\0--").split("\0"):
        if lines and len(lines[-1]) + 1 + len(part) <= _WRAP:
            lines[-1] += f" {part}"
        else:
            lines += textwrap.wrap(part, _WRAP) or [""]
    return "\n".join([*lines[:_LINES], "..."] if len(lines) > _LINES + 1 else lines)


def _inches(figure: Figure, text: str) -> float:
    # bold, as the best row is
    return house.text_width(figure, text, LABEL_PT, "bold") / figure.dpi
