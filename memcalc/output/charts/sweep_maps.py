"""A sweep over two options as maps: a cell for each pair, its number in it, what does not fit hatched.

Axes are even by cell, so doublings are as wide as steps. Checked by: unit/test_chart_sweep.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from memcalc.output.charts import house
from memcalc.output.charts.sweep_cells import (
    MISSES,
    REFUSED,
    SAID,
    TIGHT,
    boundary,
    cells,
    places,
    runs,
    thinned,
    values,
)  # fmt: skip
from memcalc.output.charts.sweep_ink import (
    OVER_HATCH,
    finding,
    finding_lines,
    legend,
    legend_rows,
    ramp,
    shades,
)  # fmt: skip
from memcalc.output.charts.sweep_numbers import TICKS, put_numbers
from memcalc.units import gib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Found = Mapping[str, Any]
_WIDTH = 7.2
#: Inches a row of cells takes, at least and at most, and what a panel may take in all.
_ROW, _TALLEST, _LOWEST = 0.3, 4.6, 0.9
#: Inches for title, source line and x axis; for the heading of a panel.
_AROUND, _TITLE = 1.55, 0.25
#: A cell's upper right corner, as a marker.
_CORNER = ((-0.2, 0.5), (0.5, 0.5), (0.5, -0.2))
#: Inches of a letter; of the triangle in a corner.
_LETTER, _TRIANGLE = 0.073, 0.12
#: Two maps stand side by side, but where only the whole width has room for numbers: from, to columns.
_BESIDE, _CROWDED = 7, 20
#: Most labels of categories below the map, and of anything beside it.
_NAMES, _LABELS_DOWN = 20, 24


class _Layout(NamedTuple):
    """How the panels stand: inches of one of them, and whether side by side."""

    width: float
    height: float
    beside: bool


def maps(figure: Figure, found: Found) -> None:
    """One map for each panel of the object, with the finding above and the legend below."""
    columns, rows = (len(axis["labels"]) for axis in found["axes"])
    panels = found["panels"]
    beside = len(panels) > 1 and not _BESIDE < columns <= _CROWDED
    across = len(panels) if beside else 1
    lowest = max(_LOWEST, _LETTER * len(found["axes"][1]["label"]) + 0.1)
    height = min(_TALLEST, max(lowest, _ROW * rows))
    layout = _Layout((_WIDTH - 0.8) / across - 0.75, height, beside)
    down = 1 if beside else len(panels)
    handles = _handles(figure, found)
    lines = 0.2 * len(finding_lines(figure, found["says"])) + 0.08
    below = 0.2 * legend_rows([handle.get_label() for handle in handles]) + 0.05
    inches = [lines, *[height] * down, below]
    figure.set_size_inches(_WIDTH, sum(inches) + _AROUND + _TITLE * down)
    grid = figure.add_gridspec(2 + down, across, height_ratios=inches)
    finding(figure, grid[0, :], found["says"], found["fits_count"] == 0)
    first: Axes | None = None
    for number, panel in enumerate(panels):
        place = grid[1, number] if beside else grid[1 + number, 0]
        axes = figure.add_subplot(place, sharex=first, sharey=first)
        first = first or axes
        _panel(axes, found, panel, layout)
        last = number == len(panels) - 1
        _ticks(axes, found, layout.width, bottom=beside or last, left=not beside or not number)
    legend(figure, grid[-1, :], handles)


def _panel(axes: Axes, found: Found, panel: Mapping[str, Any], layout: _Layout) -> None:
    """One map: cells, hatches, the edge of what fits, the best, the numbers.

    Colours run over what fits; where nothing does, over all there is.
    """
    import numpy as np

    ink = house.ink(axes.figure)
    memory, nothing = panel["kind"] == "memory", found["fits_count"] == 0
    shown = values(found, panel, () if memory else (MISSES,))
    scaled = (shown if nothing else values(found, panel, (MISSES,))).compressed()
    low, high = (float(scaled.min()), float(scaled.max())) if len(scaled) else (0.0, 1.0)
    if low == high:
        low, high = low - 0.5 * abs(low or 1), high + 0.5 * abs(high or 1)
    rows, columns = shown.shape
    mesh = axes.pcolormesh(
        np.arange(columns + 1) - 0.5, np.arange(rows + 1) - 0.5, shown, vmin=low, vmax=high,
        cmap=ramp(ink, "missed" if nothing else panel["kind"]), rasterized=shown.size > 400,
    )  # fmt: skip
    mesh.set_gid(panel["key"])
    axes.grid(False)
    ends = (-0.5, rows - 0.5)
    axes.set(xlim=(-0.5, columns - 0.5), ylim=ends if found["axes"][1]["numeric"] else ends[::-1])
    _hatches(axes, found)
    put_numbers(axes, found, mesh, (layout.width / columns, layout.height / rows))
    _corners(axes, found, layout)
    _outlines(axes, found)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_title(f"{panel['label']}, {panel['unit']}", pad=4)
    if len(scaled):
        bar = axes.figure.colorbar(mesh, ax=axes, pad=0.015, fraction=0.05, format=TICKS,
                                   aspect=max(18, 9 * layout.height))  # fmt: skip
        bar.outline.set_visible(False)
        bar.ax.grid(False)
        bar.ax.tick_params(labelsize=8, length=2)


def _hatches(axes: Axes, found: Found) -> None:
    """Grounds of what does not fit, is tight, or was refused."""
    ink = house.ink(axes.figure)
    of = shades(ink)
    over = (
        "none" if found["fits_count"] == 0 and found["panels"][0]["kind"] == "memory" else of.over
    )
    _ground(axes, cells(found, MISSES), over, ink.background, OVER_HATCH, MISSES)
    _ground(axes, cells(found, REFUSED), of.empty, ink.background, "", REFUSED)


def _ground(
    axes: Axes, taken: Sequence[tuple[int, int]], face: str, line: str, hatch: str, name: str
) -> None:
    """All cells of a state as one patch, so that its hatch has no seams."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    if not taken:
        return
    corners, codes = [], []
    for left, bottom, width in runs(taken):
        right, top = left + width, bottom + 1
        corners += [(left, bottom), (right, bottom), (right, top), (left, top), (left, bottom)]
        codes += [Path.MOVETO, *[Path.LINETO] * 3, Path.CLOSEPOLY]
    patch = PathPatch(
        Path(corners, codes), facecolor=face, edgecolor=line, linewidth=0, hatch=hatch, gid=name
    )
    axes.add_patch(patch)


def _corners(axes: Axes, found: Found, layout: _Layout) -> None:
    """A triangle in the corner of cells that fit with no room to spare; it leaves the number alone."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    taken = cells(found, TIGHT)
    if not taken:
        return
    columns, rows = (len(axis["labels"]) for axis in found["axes"])
    dx = min(0.5, _TRIANGLE * columns / layout.width)
    dy = min(0.5, _TRIANGLE * rows / layout.height)
    points = []
    for x, y in taken:
        top, right = y - 0.5 if axes.yaxis_inverted() else y + 0.5, x + 0.5
        low = top + dy if axes.yaxis_inverted() else top - dy
        points += [(right - dx, top), (right, top), (right, low), (right - dx, top)]
    colour = shades(house.ink(axes.figure)).tight
    codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY] * len(taken)
    axes.add_patch(
        PathPatch(Path(points, codes), facecolor=colour, linewidth=0, gid=TIGHT, zorder=3)
    )


def _outlines(axes: Axes, found: Found) -> None:
    """The edge between what fits and what does not, and a frame around the best cell."""
    from matplotlib.collections import LineCollection
    from matplotlib.patches import Rectangle

    ink = house.ink(axes.figure)
    edges = boundary(found)
    if edges:
        axes.add_collection(
            LineCollection(edges, colors=ink.alarm, linewidths=1.8, capstyle="projecting"),
            autolim=False,
        )
    if found["best"] is not None:
        (x, y), _ = places({**found, "rows": [found["best"]]})[0]
        axes.add_patch(
            Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor=ink.text, linewidth=2.2,
                      gid="best", zorder=5, clip_on=False)
        )  # fmt: skip


def _ticks(axes: Axes, found: Found, width: float, bottom: bool, left: bool) -> None:
    """The values of both options; long lists are thinned, and long names slanted."""
    x, y = found["axes"]
    widest = max(map(len, x["texts"])) * _LETTER + 0.08
    most = max(2, int(width / widest)) if x["numeric"] else _NAMES
    columns = thinned(len(x["texts"]), most)
    rows = thinned(len(y["texts"]), _LABELS_DOWN)
    texts = [x["texts"][i] for i in columns]
    slanted = widest > width / len(texts)
    axes.set_xticks(
        columns, texts, rotation=25 if slanted else 0, ha="right" if slanted else "center"
    )
    axes.set_yticks(rows, [y["texts"][i] for i in rows])
    axes.tick_params(length=0, labelbottom=bottom, labelleft=left)
    if bottom:
        axes.set_xlabel(x["label"])
    if left:
        axes.set_ylabel(y["label"])


def _handles(figure: Figure, found: Found) -> list[Any]:
    """What the hatches, the grey and the frames mean; only of what is there."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.path import Path

    ink = house.ink(figure)
    of = shades(ink)
    usable = found["usable_bytes"]
    over = f"does not fit the {gib(usable)} usable" if usable else SAID[MISSES]
    handles: list[Any] = []
    if cells(found, MISSES):
        handles.append(Patch(facecolor=of.over, edgecolor=ink.background, hatch=OVER_HATCH,
                             linewidth=0, label=over))  # fmt: skip
    if boundary(found):
        handles.append(Line2D([], [], color=ink.alarm, linewidth=1.8, label="edge of what fits"))
    if found["best"] is not None:
        handles.append(Patch(fill=False, edgecolor=ink.text, linewidth=2, label="best that fits"))
    if cells(found, TIGHT):
        handles.append(Line2D([], [], marker=Path(_CORNER), linestyle="", color=of.tight, markersize=8,
                              label="tight: no room to spare"))  # fmt: skip
    if cells(found, REFUSED):
        handles.append(Patch(facecolor=of.empty, edgecolor=of.empty, linewidth=0,
                             label="refused: options do not go together"))  # fmt: skip
    return handles
