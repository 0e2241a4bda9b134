"""Colours, hatches and legend marks that sweep and scaling charts share, in both themes.

Memory is blue and throughput green, darker (on dark ground: brighter) for more; what does not fit is
red and hatched in the memory panel, grey and hatched where no number is shown.
Checked by: unit/test_chart_sweep.py.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from memcalc.output.charts import house

if TYPE_CHECKING:
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

    from memcalc.output.charts.palette import Ink


class Shades(NamedTuple):
    """A theme's shades: ramps from little to much, grounds and hatches of what does not fit."""

    memory: tuple[str, ...]
    rate: tuple[str, ...]
    over: str
    missed: str
    empty: str
    tight: str


_LIGHT: Final = Shades(
    memory=("#eef5fb", "#a9cfe8", "#4f9fd0", "#11669f"),
    rate=("#eff7ea", "#b5dba8", "#5fb37a", "#16734a"),
    over="#f9dcd7", missed="#cf8379", empty="#e6e9ec", tight="#f0a202",
)  # fmt: skip
_DARK: Final = Shades(
    memory=("#16293b", "#1f4c73", "#3a86bf", "#9bd1f5"),
    rate=("#15291f", "#1f543b", "#35976a", "#97e2ba"),
    over="#442423", missed="#a35c55", empty="#262d35", tight="#f5b92e",
)  # fmt: skip
OVER_HATCH: Final = "////"
#: Inches: the figure's left edge and inner width, a letter of a legend, its handle with the gap after it.
_LEFT, _WIDTH, _LETTER, _HANDLE = 0.1, 7.0, 0.073, 0.45
#: Letters of a line of the finding.
_LONGEST, _SHORTEST = 120, 20


def shades(ink: Ink) -> Shades:
    """The shades of a theme."""
    return _DARK if ink.name == "dark" else _LIGHT


def ramp(ink: Ink, kind: str) -> Colormap:
    """The colours of a panel (memory, rate, or missed: nothing fits), from little to much."""
    from matplotlib.colors import LinearSegmentedColormap

    of = shades(ink)
    ends = {"memory": of.memory, "rate": of.rate, "missed": (of.over, of.missed)}[kind]
    return LinearSegmentedColormap.from_list(kind, ends)


def finding(figure: Figure, place: Any, says: str, alarm: bool) -> None:
    """The finding in words in a row of its own, under the subtitle; red where nothing fits."""
    from matplotlib.transforms import blended_transform_factory

    ink = house.ink(figure)
    axes = figure.add_subplot(place)
    axes.set_axis_off()
    text = axes.text(
        _LEFT / figure.get_size_inches()[0], 0.5, "\n".join(finding_lines(figure, says)), va="center",
        transform=blended_transform_factory(figure.transFigure, axes.transAxes), ha="left",
        color=ink.alarm if alarm else ink.text, fontweight="bold", linespacing=1.25, gid="finding",
    )  # fmt: skip
    text.set_in_layout(False)


def finding_lines(figure: Figure, says: str) -> list[str]:
    """The finding, in as few lines as the figure's width takes, evenly long."""
    limit = _WIDTH * figure.dpi
    width = _LONGEST
    lines = textwrap.wrap(says, width)
    while width > _SHORTEST and any(
        house.text_width(figure, line, weight="bold") > limit for line in lines
    ):
        width -= 2
        lines = textwrap.wrap(says, width)
    while width > _SHORTEST and len(textwrap.wrap(says, width - 1)) == len(lines):
        width -= 1
    return textwrap.wrap(says, width) or [""]


def legend_rows(labels: Sequence[str]) -> int:
    """How many rows a legend of these takes across the figure."""
    return -(-len(labels) // legend_columns(labels)) if labels else 0


def legend_columns(labels: Sequence[str]) -> int:
    """The most columns, each as wide as its widest label, that go into the figure."""
    for count in range(len(labels), 1, -1):
        rows = -(-len(labels) // count)
        widest = [max(map(len, labels[i : i + rows])) for i in range(0, len(labels), rows)]
        if sum(widest) * _LETTER + count * _HANDLE <= _WIDTH:
            return count
    return 1


def legend(figure: Figure, place: Any, handles: Sequence[Any]) -> None:
    """A legend in a row of its own, below the panels, from the figure's left edge."""
    from matplotlib.transforms import blended_transform_factory

    axes = figure.add_subplot(place)
    axes.set_axis_off()
    if not handles:
        return
    made = axes.legend(
        handles=handles, loc="upper left", ncols=legend_columns([h.get_label() for h in handles]),
        bbox_to_anchor=(_LEFT / figure.get_size_inches()[0], 1.0), borderpad=0, borderaxespad=0,
        bbox_transform=blended_transform_factory(figure.transFigure, axes.transAxes),
    )  # fmt: skip
    made.set_in_layout(False)
