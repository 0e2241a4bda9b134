"""Marks of a sweep over one option: bars, the band, what the GPU has, the best, and the legend.

Checked by: unit/test_chart_sweep.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from memcalc.output.charts import house
from memcalc.output.charts.bar_labels import readable_on
from memcalc.output.charts.sweep_cells import (
    FITS,
    MISSES,
    REFUSED,
    SAID,
    TIGHT,
    UNJUDGED,
    state,
)  # fmt: skip
from memcalc.output.charts.sweep_ink import OVER_HATCH, shades
from memcalc.output.charts.sweep_numbers import number
from memcalc.units import GIB, gib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Found = Mapping[str, Any]
Row = Mapping[str, Any]
#: Most bars with a number; width of a bar, of the distance between two; bars up to this share of the
#: longest have their number above them.
_NUMBERED, _BAR, _SHORT = 12, 0.62, 0.15
_DASHES: Final = (0, (4, 2))
#: Points this near to the capacity, of the axis, meet its name.
_NEAR = 0.15


class Spot(NamedTuple):
    """A row where it stands: x of the axis, y in the panel's unit."""

    x: float
    y: float
    row: Row


def has_capacity(panel: Mapping[str, Any]) -> bool:
    """Whether what the GPU gives belongs into a panel."""
    return bool(panel["kind"] == "memory" and panel["key"] != "host_bytes")


def top(known: Sequence[Spot], panel: Mapping[str, Any], usable_bytes: float | None) -> float:
    """The end of a y axis that begins at 0: room over all points, their bands and the capacity."""
    ends = [spot.y for spot in known]
    if panel["key"] == "device_used_bytes":
        ends += [(spot.row.get("high_bytes") or 0) / GIB for spot in known]
        ends += [(spot.row["usable_bytes"] or 0) / GIB for spot in known if usable_bytes is None]
    return max(1.1 * max(ends, default=0.0), 1.22 * (usable_bytes or 0) / GIB) or 1.0


def bars(axes: Axes, known: Sequence[Spot], colour: str) -> None:
    """A bar for each category with its number on top; hatched where it does not fit."""
    ink = house.ink(axes.figure)
    for what, face, hatch in (
        (FITS, colour, None), (UNJUDGED, colour, None), (TIGHT, colour, None),
        (MISSES, shades(ink).missed, OVER_HATCH),
    ):  # fmt: skip
        spots = [spot for spot in known if state(spot.row) == what]
        if spots:
            axes.bar([s.x for s in spots], [s.y for s in spots], _BAR, color=face, hatch=hatch,
                     edgecolor=ink.background, linewidth=0, label=what)  # fmt: skip
    tall = _SHORT * max([spot.y for spot in known], default=0.0)
    for spot in known if len(known) <= _NUMBERED else ():
        face = shades(ink).missed if state(spot.row) == MISSES else colour
        inside = spot.y > tall
        axes.annotate(
            number(spot.y), (spot.x, 0 if inside else spot.y), xytext=(0, 5), ha="center", gid="number",
            textcoords="offset points", color=readable_on(face) if inside else ink.text,
            path_effects=[halo(face)] if inside else [],
        )  # fmt: skip


def band(axes: Axes, known: Sequence[Spot], colour: str, numeric: bool) -> None:
    """From the lowest to the highest that driver-used bytes may be."""
    banded = [spot for spot in known if spot.row.get("low_bytes") is not None]
    low = [spot.row["low_bytes"] / GIB for spot in banded]
    high = [spot.row["high_bytes"] / GIB for spot in banded]
    at = [spot.x for spot in banded]
    if numeric and len(at) > 1:
        axes.fill_between(
            at, low, high, color=colour, alpha=0.25, linewidth=0, gid="band", zorder=1
        )
    elif at:
        axes.vlines(at, low, high, color=house.ink(axes.figure).text, linewidth=1.4, gid="band")


def capacity(axes: Axes, found: Found, panel: Mapping[str, Any], known: Sequence[Spot]) -> None:
    """What the GPU gives: a dashed line, or a mark for each value where GPUs differ."""
    ink = house.ink(axes.figure)
    usable = found["usable_bytes"]
    if panel["key"] == "headroom_bytes":
        axes.axhline(0, color=ink.accent, linestyle=_DASHES, gid="usable")
        return
    if usable is None:
        each = [(s.x, s.row["usable_bytes"] / GIB) for s in known if s.row["usable_bytes"]]
        for x, size in each:
            axes.plot(
                [x - 0.4, x + 0.4], [size] * 2, color=ink.accent, linestyle=_DASHES, gid="usable"
            )
        return
    axes.axhline(usable / GIB, color=ink.accent, linestyle=_DASHES, gid="usable")
    # at the left, unless the first points lie there
    near = any(abs(spot.y - usable / GIB) < _NEAR * axes.get_ylim()[1] for spot in known[:2])
    axes.annotate(
        f"usable {gib(usable)}", (int(near), usable / GIB), xycoords=axes.get_yaxis_transform(),
        xytext=(-4 if near else 4, 2), textcoords="offset points", va="bottom", color=ink.accent,
        fontweight="bold", ha="right" if near else "left",
        path_effects=[halo(ink.background)], zorder=5,
    )  # fmt: skip


def halo(colour: str) -> Any:
    """A rim around letters, so that lines behind them end before them."""
    from matplotlib.patheffects import withStroke

    return withStroke(linewidth=2.5, foreground=colour)


def best(axes: Axes, found: Found, known: Sequence[Spot]) -> None:
    """A ring around the best."""
    row = found["best"]
    for spot in known:
        if row is not None and spot.row["labels"] == row["labels"]:
            if not found["axes"][0]["numeric"]:
                axes.bar([spot.x], [spot.y], _BAR, fill=False, edgecolor=house.ink(axes.figure).text,
                         linewidth=2.2, gid="best", zorder=4)  # fmt: skip
                continue
            axes.plot([spot.x], [spot.y], "o", markersize=10, markerfacecolor="none", gid="best",
                      markeredgecolor=house.ink(axes.figure).text, markeredgewidth=2, zorder=4)  # fmt: skip


def handles(figure: Figure, found: Found) -> list[Any]:
    """What markers, hatches and bands mean; only of what is there."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    ink = house.ink(figure)
    there = {state(row) for row in found["rows"]}
    lead = found["panels"][0]
    colour = shades(ink).memory[2] if lead["kind"] == "memory" else shades(ink).rate[2]
    numeric = found["axes"][0]["numeric"]
    banded = any(row.get("low_bytes") is not None for row in found["rows"])
    marks: list[Any] = []
    if lead["key"] == "device_used_bytes" and banded:
        name = "band of memory used"
        marks.append(
            Patch(facecolor=colour, alpha=0.25, linewidth=0, label=name)
            if numeric
            else Line2D([], [], color=ink.text, linewidth=1.4, label=name)
        )
    if found["usable_bytes"] is None and has_capacity(lead) and found["fits_count"] is not None:
        marks.append(Line2D([], [], color=ink.accent, linestyle=_DASHES, label="usable"))
    if MISSES in there:
        marks.append(Patch(facecolor=shades(ink).over, edgecolor=ink.background, linewidth=0,
                             hatch=OVER_HATCH, label=SAID[MISSES]))  # fmt: skip
    if TIGHT in there:
        marks.append(Line2D([], [], marker="o", linestyle="", color=colour, fillstyle="bottom",
                              markerfacecoloralt=ink.background, label=SAID[TIGHT]))  # fmt: skip
    if REFUSED in there:
        marks.append(Line2D([], [], marker="x", linestyle="", color=ink.muted, markersize=7,
                              markeredgewidth=1.6, label=SAID[REFUSED]))  # fmt: skip
    if found["best"] is not None:
        marks.append(
            Line2D([], [], marker="o", linestyle="", markersize=9, markeredgewidth=2,
                   markerfacecolor="none", markeredgecolor=ink.text, label="best that fits")
            if numeric
            else Patch(fill=False, edgecolor=ink.text, linewidth=2, label="best that fits")
        )  # fmt: skip
    return marks
