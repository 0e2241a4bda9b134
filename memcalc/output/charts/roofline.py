"""The roofline chart: rate over arithmetic intensity, both logarithmic, under the roofs of the device.

A marker is an op in one direction: its shape says which, its colour what bounds it, its area its share
of the step. Below, what moves bytes without a product, on a scale of its own up to the memory's rate.
Drawn from the chart's object alone. Checked by: unit/test_chart_roofline.py.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from math import sqrt
from typing import TYPE_CHECKING, Any, Final

from memcalc.output.charts import house
from memcalc.output.charts.roofline_labels import Named, put_labels, settled
from memcalc.output.charts.text import ending, heading
from memcalc.output.console import Page

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
Found = Mapping[str, Any]
TERA: Final = 1e12
#: Direction of an op -> its marker; bound -> its place among the house's series.
MARKERS: Final = {"forward": "o", "backward": "s", "recompute": "^", "optimizer": "D"}
BOUNDS: Final = {"compute": 0, "bandwidth": 4, "latency": 3}
#: Square points of a marker that stands for the whole step, and of the smallest there is.
_WHOLE, _LEAST = 2000.0, 10.0
_LABELLED, _LABELLED_BELOW = 9, 5
_TABLE = 12
#: Points of a row below; axes over fewer decades than this have ticks at 2 and 5.
_ROW, _FINE = 15.0, 150.0
#: Characters of a line below the picture.
_NOTE = 92
#: Directions in the table's narrow column.
_WAYS: Final = {"forward": "fwd", "backward": "bwd", "recompute": "again", "optimizer": "step"}


def draw(figure: Figure, found: Found) -> None:
    """Rates under the roofs, and below them the ops that only move bytes."""
    figure.set_size_inches(7.2, 5.9)
    rows = found["rows"]
    products = [row for row in rows if row["flops_per_s"]]
    movers = [row for row in rows if not row["flops_per_s"]]
    directions = [name for name in MARKERS if any(row["direction"] == name for row in movers)]
    tall = max(1.2, 0.45 * len(directions))
    upper, lower = figure.subplots(2, 1, height_ratios=(4.6, tall))
    _roofs(upper, found, products)
    _points(upper, products, "intensity", "flops_per_s")
    _legend(figure, rows)
    _below(lower, found, movers, directions)
    settled(figure, found)
    _label(upper, products, [(row["intensity"], row["flops_per_s"] / TERA) for row in products],
           _LABELLED)  # fmt: skip
    _label(lower, movers, [_place(row, directions) for row in movers], _LABELLED_BELOW)


def _roofs(axes: Axes, found: Found, products: Sequence[Row]) -> None:
    """The slope of the memory and a level for each dtype: the datasheet's, and below it what is reached."""
    ink = house.ink(axes.figure)
    memory, roofs = found["memory"], found["roofs"]
    slope = memory["peak_bytes_per_s"]
    top = max([roof["peak_flops_per_s"] for roof in roofs], default=slope * 100)
    intensities = [row["intensity"] for row in products] or [top / slope]
    left = min([*intensities, top / slope / 2]) * 0.7
    right = max([*intensities, top / slope]) * 1.6
    least = min([row["flops_per_s"] for row in products], default=top / 100)
    axes.set(xscale="log", yscale="log", xlim=(left, right),
             ylim=(min(least * 0.5, top / 8) / TERA, top * 1.5 / TERA),
             xlabel="arithmetic intensity, FLOPs a byte", ylabel="TFLOP/s")  # fmt: skip
    axes.grid(True, axis="both")
    _plain_ticks(axes)
    reached = memory["reached_bytes_per_s"]
    axes.plot([left, top / slope], [left * slope / TERA, top / TERA], color=ink.text,
              gid="memory peak")  # fmt: skip
    best = max([roof["reached_flops_per_s"] or roof["peak_flops_per_s"] for roof in roofs] or [top])
    axes.plot([left, best / reached], [left * reached / TERA, best / TERA], color=ink.muted,
              linestyle=(0, (4, 3)), linewidth=1.0, gid="memory reached")  # fmt: skip
    for roof in roofs:
        _level(axes, found, roof, right)


def _level(axes: Axes, found: Found, roof: Mapping[str, Any], right: float) -> None:
    ink = house.ink(axes.figure)
    slope, reached_slope = (
        found["memory"]["peak_bytes_per_s"],
        found["memory"]["reached_bytes_per_s"],
    )
    peak, reached = roof["peak_flops_per_s"], roof["reached_flops_per_s"]
    name = roof["dtype"]
    axes.plot([peak / slope, right], [peak / TERA] * 2, color=ink.text, gid=f"{name} peak")
    said = f"{name} peak {peak / TERA:,.0f} TFLOP/s"
    if reached and reached < 0.97 * peak:
        axes.plot([reached / reached_slope, right], [reached / TERA] * 2, color=ink.muted,
                  linestyle=(0, (4, 3)), linewidth=1.0, gid=f"{name} reached")  # fmt: skip
        said += f"; long products reach {reached / TERA:,.0f}"
    axes.annotate(said, (right, peak / TERA), xytext=(-3, 3), textcoords="offset points", ha="right",
                  va="bottom", fontsize=8, color=ink.text)  # fmt: skip


def _plain_ticks(axes: Axes) -> None:
    """1, 10, 100 instead of powers, and 2 and 5 between where that is not too many."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axis, (least, most) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        steps = (1, 2, 5) if most / least < _FINE else (1,)
        axis.set_major_locator(LogLocator(subs=steps, numticks=20))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        axis.set_minor_formatter(NullFormatter())


def _area(share: float) -> float:
    """Square points of a marker."""
    return max(_LEAST, share * _WHOLE)


def _radius(row: Row) -> float:
    """Points from a marker's middle to its tip."""
    tip = sqrt(2) if MARKERS.get(row["direction"]) == "D" else 1.0
    return sqrt(_area(row["share"])) / 2 * tip


def _colour(axes: Axes, row: Row) -> str:
    return house.series(axes.figure)[BOUNDS.get(row["bound"], 6)]


def _points(axes: Axes, rows: Iterable[Row], x: str, y: str) -> None:
    """A marker an op; the largest first, so that small ones lie on top."""
    for row in sorted(rows, key=lambda row: -row["share"]):
        _marker(axes, row, (row[x], row[y] / TERA))


def _marker(axes: Axes, row: Row, at: tuple[float, float]) -> None:
    ink = house.ink(axes.figure)
    edge = ink.alarm if row["over"] else ink.background
    axes.scatter(
        *at, s=_area(row["share"]), marker=MARKERS.get(row["direction"], "o"), alpha=0.85, zorder=3,
        color=_colour(axes, row), edgecolors=edge, linewidths=1.6 if row["over"] else 0.7,
        gid=f"{row['part']} {row['op']} {row['direction']}",
    )  # fmt: skip


def _below(axes: Axes, found: Found, movers: Sequence[Row], directions: Sequence[str]) -> None:
    """Ops without products: bytes a second, a row for each direction."""
    ink = house.ink(axes.figure)
    memory = found["memory"]
    peak, reached = memory["peak_bytes_per_s"] / TERA, memory["reached_bytes_per_s"] / TERA
    most = max([row["bytes_per_s"] / TERA for row in movers] + [peak])
    said = f"ops without products, TB/s; memory peak {peak:.2f}, reached by copies {reached:.2f}"
    stepping = max((_radius(row) for row in movers if row["direction"] == "optimizer"), default=0.0)
    lowest = len(directions) - 1 + max(0.7, stepping / _ROW)
    axes.set(xlim=(0, most * 1.02), ylim=(lowest, -0.7),
             xlabel="\n".join([said, *textwrap.wrap(found["says"], _NOTE)]))  # fmt: skip
    axes.set_yticks(range(len(directions)), directions)
    axes.grid(True, axis="x")
    axes.grid(False, axis="y")
    axes.axvline(peak, color=ink.text, linewidth=1.6, gid="memory peak")
    axes.axvline(reached, color=ink.muted, linestyle=(0, (4, 3)), linewidth=1.0,
                 gid="memory reached")  # fmt: skip
    for row in sorted(movers, key=lambda row: -row["share"]):
        _marker(axes, row, _place(row, directions))


def _place(row: Row, directions: Sequence[str]) -> tuple[float, float]:
    return row["bytes_per_s"] / TERA, float(directions.index(row["direction"]))


def _legend(figure: Figure, rows: Sequence[Row]) -> None:
    from matplotlib.lines import Line2D

    ink, series = house.ink(figure), house.series(figure)
    handles = [
        Line2D([], [], linestyle="", marker=shape, color=ink.muted, markersize=6, label=name)
        for name, shape in MARKERS.items()
        if any(row["direction"] == name for row in rows)
    ]
    handles += [
        Line2D([], [], linestyle="", marker="o", color=series[place], markersize=7,
               label=f"bound by {name}")
        for name, place in BOUNDS.items()
        if any(row["bound"] == name for row in rows)
    ]  # fmt: skip
    handles += [
        Line2D([], [], linestyle="", marker="o", color=ink.background, markeredgecolor=ink.muted,
               markersize=sqrt(_area(share)), label=f"{100 * share:.0f} % of the step")
        for share in (0.01, 0.05)
    ]  # fmt: skip
    house.legend_on_top(figure, handles, [str(handle.get_label()) for handle in handles])


def _label(axes: Axes, rows: Sequence[Row], at: Sequence[tuple[float, float]], most: int) -> None:
    """Names of the ops that take longest."""
    points = [Named(*place, _radius(row), _name(row)) for row, place in zip(rows, at, strict=True)]
    order = sorted(range(len(rows)), key=lambda i: -rows[i]["share"])
    put_labels(axes, [points[i] for i in order[:most]], points)


def _name(row: Row) -> str:
    return str(row["op"])


def page(sheet: Page, found: Found) -> None:
    """The ops that take longest, with how far under their roof they run, as a table."""
    heading(sheet, found)
    memory = found["memory"]
    for roof in found["roofs"]:
        reached = roof["reached_flops_per_s"]
        said = f", long products reach {reached / TERA:,.0f}" if reached else ""
        sheet.line(f"{roof['dtype']} peak {roof['peak_flops_per_s'] / TERA:,.0f} TFLOP/s{said}")
    sheet.line(
        f"memory peak {memory['peak_bytes_per_s'] / TERA:.2f} TB/s, "
        f"copies reach {memory['reached_bytes_per_s'] / TERA:.2f}"
    )
    sheet.line()
    rows = sorted(found["rows"], key=lambda row: -row["share"])
    columns = ("Op", "way", ">share", ">FLOPs/byte", ">TFLOP/s", ">TB/s", ">of roof", "bound")
    sheet.table(columns, [_cells(row, memory) for row in rows[:_TABLE]])
    rest = rows[_TABLE:]
    if rest:
        share = 100 * sum(row["share"] for row in rest)
        sheet.line(f"{len(rest)} more ops: {share:.1f} %; --csv or --json has all")
    sheet.line(found["says"])
    ending(sheet, found)


def _cells(row: Row, memory: Mapping[str, Any]) -> list[str]:
    rate, roof = row["flops_per_s"], row["roof_flops_per_s"]
    of_roof = rate / roof if rate else row["bytes_per_s"] / memory["peak_bytes_per_s"]
    return [
        row["op"],
        _WAYS.get(row["direction"], row["direction"]),
        f"{100 * row['share']:.1f} %",
        f"{row['intensity']:,.1f}" if rate else "-",
        f"{rate / TERA:,.0f}" if rate else "-",
        f"{row['bytes_per_s'] / TERA:.2f}",
        f"{100 * of_roof:.0f} %",
        row["bound"],
    ]
