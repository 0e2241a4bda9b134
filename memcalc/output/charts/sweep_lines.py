"""A sweep over one option: memory with its band and what the GPU has, and throughput below it.

Numbers are points on a line, on a logarithmic axis where they multiply; categories are bars. What does
not fit is hollow, what was refused a cross at the foot. Checked by: unit/test_chart_sweep.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from memcalc.output.charts import house
from memcalc.output.charts.sweep_cells import (
    FITS,
    MISSES,
    REFUSED,
    TIGHT,
    UNJUDGED,
    along,
    state,
    thinned,
)  # fmt: skip
from memcalc.output.charts.sweep_ink import (
    OVER_HATCH,
    finding,
    finding_lines,
    legend,
    legend_rows,
    shades,
)  # fmt: skip
from memcalc.output.charts.sweep_marks import (
    Spot,
    band,
    bars,
    best,
    capacity,
    handles,
    has_capacity,
    top,
)  # fmt: skip
from memcalc.output.charts.sweep_numbers import TICKS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Found = Mapping[str, Any]
Row = Mapping[str, Any]
_WIDTH, _PANEL, _AROUND = 7.2, 1.75, 1.65
#: Most values written on the x axis, letters beside each other there, and points with a marker.
_TICKS, _LETTERS, _MARKED = 16, 90, 40
#: An axis is logarithmic from this ratio of last to first on, where its steps grow.
_LOG_FROM = 8


def lines(figure: Figure, found: Found) -> None:
    """One panel for each of the object's, above each other on the same x axis."""
    panels = found["panels"]
    keys = handles(figure, found)
    above = 0.2 * len(finding_lines(figure, found["says"])) + 0.08
    below = 0.2 * legend_rows([handle.get_label() for handle in keys]) + 0.05
    inches = [above, *[_PANEL] * len(panels), below]
    figure.set_size_inches(_WIDTH, sum(inches) + _AROUND)
    grid = figure.add_gridspec(len(inches), 1, height_ratios=inches)
    finding(figure, grid[0], found["says"], found["fits_count"] == 0)
    at = positions(found["axes"][0])
    rows = along(found)
    first: Axes | None = None
    for nth, panel in enumerate(panels, 1):
        axes = figure.add_subplot(grid[nth], sharex=first)
        first = first or axes
        axes.set_gid(panel["key"])
        _scale(axes, found["axes"][0], at)
        _data(axes, found, panel, at, rows)
        _frame(axes, found, panel, at, last=nth == len(panels))
    legend(figure, grid[-1], keys)


def positions(axis: Mapping[str, Any]) -> list[float]:
    """Where the values of an axis stand: themselves where they are numbers, else 0, 1, 2."""
    return (
        [float(v) for v in axis["values"]] if axis["numeric"] else list(range(len(axis["texts"])))
    )


def is_log(axis: Mapping[str, Any]) -> bool:
    """Whether the values multiply: numbers above 0 whose steps grow over a wide range."""
    values = axis["values"]
    if not axis["numeric"] or len(values) < 3 or values[0] <= 0:
        return False
    grows = values[-1] - values[-2] > 2 * (values[1] - values[0])
    return bool(grows and values[-1] / values[0] >= _LOG_FROM)


def _scale(axes: Axes, axis: Mapping[str, Any], at: Sequence[float]) -> None:
    """The x axis before anything is drawn on it."""
    if is_log(axis):
        axes.set_xscale("log", base=2)
        edge = (at[-1] / at[0]) ** 0.03
        axes.set_xlim(at[0] / edge, at[-1] * edge)
    elif axis["numeric"] and len(at) > 1:
        edge = 0.03 * (at[-1] - at[0])
        axes.set_xlim(at[0] - edge, at[-1] + edge)
    else:
        axes.set_xlim(at[0] - 0.6, at[-1] + 0.6)


def _data(
    axes: Axes, found: Found, panel: Mapping[str, Any], at: Sequence[float], rows: Sequence[Row]
) -> None:
    """One panel's points, in its unit, by what they are."""
    ink = house.ink(axes.figure)
    colour = shades(ink).memory[2] if panel["kind"] == "memory" else shades(ink).rate[2]
    known = [
        Spot(x, row[panel["key"]] * panel["scale"], row)
        for x, row in zip(at, rows, strict=True)
        if row[panel["key"]] is not None
    ]
    numeric = found["axes"][0]["numeric"]
    if numeric:
        _spans(axes, found["axes"][0], at, rows)
        _line(axes, known, colour)
    else:
        bars(axes, known, colour)
    if panel["key"] == "device_used_bytes":
        band(axes, known, colour, numeric)
    if has_capacity(panel):
        capacity(axes, found, panel, known)
    if panel["key"] != "headroom_bytes":
        usable = found["usable_bytes"] if has_capacity(panel) else None
        axes.set_ylim(0, top(known, panel, usable))
    best(axes, found, known)
    refused = [x for x, row in zip(at, rows, strict=True) if state(row) == REFUSED]
    if refused:
        axes.plot(refused, [0.0] * len(refused), "x", color=ink.muted, markersize=7, clip_on=False,
                  markeredgewidth=1.6, gid=REFUSED, zorder=4, transform=axes.get_xaxis_transform(),
                  linestyle="")  # fmt: skip


def _spans(axes: Axes, axis: Mapping[str, Any], at: Sequence[float], rows: Sequence[Row]) -> None:
    """A hatched ground behind the values that do not fit, half way to their neighbours."""
    ink = house.ink(axes.figure)
    left, right = axes.get_xlim()
    log = is_log(axis)
    edges = [left, *(_between(a, b, log) for a, b in pairwise(at)), right]
    begin: float | None = None
    for i, row in enumerate([*rows, None]):
        missed = row is not None and state(row) == MISSES
        if missed and begin is None:
            begin = edges[i]
        elif not missed and begin is not None:
            axes.axvspan(begin, edges[i], facecolor=shades(ink).over, edgecolor=ink.background,
                         hatch=OVER_HATCH, linewidth=0, zorder=0, gid="span")  # fmt: skip
            begin = None


def _between(low: float, high: float, log: bool) -> float:
    return (low * high) ** 0.5 if log else (low + high) / 2


def _line(axes: Axes, known: Sequence[Spot], colour: str) -> None:
    """A line through all, markers filled where it fits, half filled where tight, else hollow."""
    ground = house.ink(axes.figure).background
    axes.plot([s.x for s in known], [s.y for s in known], color=colour, gid="all")
    size = 5.0 if len(known) <= _MARKED else 0.0
    for what, style, face in (
        (FITS, "full", colour), (UNJUDGED, "full", colour), (TIGHT, "bottom", colour),
        (MISSES, "full", ground),
    ):  # fmt: skip
        spots = [spot for spot in known if state(spot.row) == what]
        if spots:
            axes.plot([s.x for s in spots], [s.y for s in spots], "o", markersize=size, color=colour,
                      fillstyle=style, markerfacecolor=face, markerfacecoloralt=ground, gid=what,
                      markeredgewidth=1.2, zorder=3)  # fmt: skip


def _frame(
    axes: Axes, found: Found, panel: Mapping[str, Any], at: Sequence[float], last: bool
) -> None:
    """Labels of the axes; values at their own places, thinned where there are many."""
    axis = found["axes"][0]
    axes.set_title(f"{panel['label']}, {panel['unit']}", pad=4)
    axes.yaxis.set_major_formatter(TICKS)
    shown = thinned(len(at), _TICKS)
    texts = [axis["texts"][i] for i in shown]
    slanted = sum(map(len, texts)) + 2 * len(texts) > _LETTERS
    axes.minorticks_off()
    axes.set_xticks([at[i] for i in shown], texts, rotation=20 if slanted else 0,
                    ha="right" if slanted else "center")  # fmt: skip
    axes.tick_params(labelbottom=last)
    if last:
        axes.set_xlabel(axis["label"])
