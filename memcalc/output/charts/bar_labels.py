"""Labels of horizontal bars: totals at their ends, sizes inside the parts that have room for them.

Widths are measured with the renderer, so that no text runs over another or out of the axes.
Checked by: unit/test_charts_breakdown.py.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from memcalc.output.charts import house

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GAP_PT: Final = 5.0
_POINTS_PER_INCH: Final = 72.0
_PART_PT: Final = 8.0


def wrapped(label: str, width: int) -> str:
    """A label in lines of about this many characters, three at most."""
    lines = textwrap.wrap(label, width, break_on_hyphens=False) or [""]
    return "\n".join([*lines[:2], f"{lines[2]}.."] if len(lines) > 3 else lines)


class Total(NamedTuple):
    """What is written at a bar's end; alarm: in the colour for what does not fit.

    line: where the GPU's memory ends, which the text goes behind rather than over it.
    """

    end: float
    text: str
    alarm: bool
    line: float | None = None

    @property
    def weight(self) -> str:
        """How it is written."""
        return "bold" if self.alarm else "normal"


def make_room(axes: Axes, totals: Sequence[Total], most: float) -> None:
    """Widen the x axis until every text fits behind its bar, and what is largest is on it."""
    limit = most * 1.03 or 1
    axes.set_xlim(0, limit)
    house.settle(axes)
    width = axes.get_window_extent().width
    for _ in range(2):  # the second time on the axis as it then is
        for total in totals:
            share = min(0.6, (_taken(axes, total) + _pixels(axes, _GAP_PT)) / width)
            limit = max(limit, _start(axes, total) / (1 - share))
        axes.set_xlim(0, limit)


def label_totals(axes: Axes, totals: Sequence[Total]) -> None:
    """Write each text at the end of its bar, over the grid; what has no room is cut."""
    ink = house.ink(axes.figure)
    box = axes.get_window_extent()
    for at, total in enumerate(totals):
        start = _start(axes, total)
        room = box.x1 - axes.transData.transform((start, at))[0] - _pixels(axes, 2 * _GAP_PT)
        axes.annotate(
            _cut(axes, total, room), (start, at), xytext=(_GAP_PT, 0),
            textcoords="offset points", va="center", ha="left", linespacing=1.05, gid="total",
            color=ink.alarm if total.alarm else ink.text, fontweight=total.weight,
            bbox={"facecolor": ink.background, "edgecolor": "none", "pad": 1.0},
        )  # fmt: skip


def _taken(axes: Axes, total: Total) -> float:
    """Pixels of a total's text with the gaps on both sides."""
    return _width(axes, total.text, weight=total.weight) + _pixels(axes, 2 * _GAP_PT)


def _start(axes: Axes, total: Total) -> float:
    """Where a total's text starts on the axis: the bar's end, or the line that would run through it."""
    per_pixel = axes.get_xlim()[1] / axes.get_window_extent().width
    if (
        total.line is not None
        and total.end <= total.line <= total.end + _taken(axes, total) * per_pixel
    ):
        return total.line
    return total.end


def label_parts(axes: Axes) -> None:
    """Write a part's size into it where it has room, dark on light colours and light on dark ones."""
    from matplotlib.container import BarContainer

    per_unit = axes.get_window_extent().width / (axes.get_xlim()[1] - axes.get_xlim()[0])
    for container in axes.containers:
        assert isinstance(container, BarContainer)
        for bar in container.patches:
            text = f"{bar.get_width():,.1f}"
            if bar.get_width() * per_unit < _width(axes, text, _PART_PT) + _pixels(axes, 4):
                continue
            axes.text(
                bar.get_x() + bar.get_width() / 2, bar.get_y() + bar.get_height() / 2, text,
                ha="center", va="center_baseline", fontsize=_PART_PT,
                color=readable_on(bar.get_facecolor()), gid="part", zorder=4,
                bbox={"facecolor": bar.get_facecolor(), "edgecolor": "none", "pad": 0.6},
            )  # fmt: skip


def readable_on(colour: Any) -> str:
    """Black or white, whichever has the greater contrast (WCAG 2 relative luminance)."""
    from matplotlib.colors import to_rgb

    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000000" if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else "#ffffff"


def _cut(axes: Axes, total: Total, room: float) -> str:
    """A total's text, its end left out where it is wider than the room."""
    shown = total.text
    while len(shown) > 8 and _width(axes, shown, weight=total.weight) > room:
        shown = shown[:-6].rstrip(" .,") + "..."
    return shown


def _width(axes: Axes, text: str, size: float = house.TEXT_PT, weight: str = "normal") -> float:
    return house.text_width(axes.figure, text, size, weight)


def _pixels(axes: Axes, points: float) -> float:
    return points / _POINTS_PER_INCH * axes.figure.dpi
