"""Breakdown as a picture and as text: stacked bars, what the GPU gives as a line, what is too much.

One bar a row, horizontal, so that labels of any length can be read; with a single bar the legend has
its sizes. Drawn from the chart's object alone. Checked by: unit/test_charts_breakdown.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from memcalc.output.charts import house
from memcalc.output.charts.bar_labels import Total, label_parts, label_totals, make_room, wrapped
from memcalc.output.charts.palette import HATCHES, name_of
from memcalc.units import GIB, MIB, gib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from memcalc.output.console import Page

Found = Mapping[str, Any]
Row = Mapping[str, Any]
_THICK: Final = 0.62  # of the distance between bars


def draw(figure: Figure, found: Found) -> None:
    """The bars of a breakdown, the first row on top."""
    rows = found["rows"]
    lines = [wrapped(row["label"], 26) for row in rows]
    inches = sum(max(0.4, 0.17 * (label.count("\n") + 1) + 0.1) for label in lines)
    figure.set_size_inches(house.SIZE[0], 1.75 + max(0.75, inches) + 0.18 * _legend_rows(found))
    axes = figure.add_subplot()
    scale, unit = unit_of(found)
    _bars(axes, found, scale)
    axes.set_yticks(range(len(rows)), lines)
    axes.set_ylim(len(rows) - 0.45, -0.95 if len(_capacities(found)) == 1 else -0.6)
    axes.set_xlabel(f"memory of one GPU at the peak, {unit}")
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    if len(rows) == 1:
        axes.set_yticks([])
    _legend(figure, axes, found)
    totals = [_total(row, scale) for row in rows]
    make_room(axes, totals, _most(found) / scale)
    _capacity(axes, found, scale)
    label_totals(axes, totals)
    label_parts(axes)


def unit_of(found: Found) -> tuple[int, str]:
    """Bytes of the axis's unit, and its name: GiB, for very small models MiB."""
    most = max((row["total_bytes"] or 0 for row in found["rows"]), default=0)
    return (GIB, "GiB") if most >= GIB else (MIB, "MiB")


def total_text(row: Row) -> str:
    """What is written at a bar's end: its total, and what it lacks."""
    if row["reason"] is not None:
        return f"refused: {row['reason']}"
    text = gib(row["total_bytes"])
    if row["fits"] is False:
        over = row["over_bytes"]
        return f"{text}\n{gib(over)} too much" if over else f"{text}\nhost memory too small"
    if row["fits"] and row["headroom_bytes"] < 0:
        return f"{text}, fits\nwith its cache freed"
    return f"{text}, tight" if row["verdict"] == "tight" else text


def _total(row: Row, scale: int) -> Total:
    line = None if row["usable_bytes"] is None else row["usable_bytes"] / scale
    return Total((row["total_bytes"] or 0) / scale, total_text(row), bool(row["over_bytes"]), line)


def _capacities(found: Found) -> list[int]:
    """What the GPUs give, each figure once."""
    usable = (row["usable_bytes"] for row in found["rows"])
    return list(dict.fromkeys(size for size in usable if size is not None))


def _end(row: Row) -> float:
    return float(max(row["total_bytes"] or 0, row["high_bytes"] or 0))


def _most(found: Found) -> float:
    """The largest thing on the axis: a bar's end or a capacity."""
    ends = [_end(row) for row in found["rows"]]
    return max([*ends, *(row["usable_bytes"] or 0 for row in found["rows"])])


def _bars(axes: Axes, found: Found, scale: int) -> None:
    """A container of bars for each category, and the band at each bar's end."""
    from matplotlib.colors import to_rgba

    rows, shades = found["rows"], house.colours(axes.figure)
    ink = house.ink(axes.figure)
    left = [0] * len(rows)
    for name in found["categories"]:
        sizes = [row["parts"].get(name, 0) for row in rows]
        axes.barh(
            range(len(rows)), [size / scale for size in sizes], _THICK,
            left=[start / scale for start in left], color=shades[name], label=name, linewidth=0.6,
            edgecolor=to_rgba(ink.background, 0.9), hatch=HATCHES.get(name),
        )  # fmt: skip
        left = [start + size for start, size in zip(left, sizes, strict=True)]
    for at, row in enumerate(rows):
        if row["low_bytes"] is not None and row["high_bytes"] is not None:
            ends = [row["low_bytes"] / scale, row["high_bytes"] / scale]
            axes.plot(ends, [at + _THICK / 2 + 0.09] * 2, color=ink.muted, linewidth=1.2,
                      marker="|", markersize=4, gid="band", solid_capstyle="butt")  # fmt: skip


def _capacity(axes: Axes, found: Found, scale: int) -> None:
    """What the GPU gives: one line through all bars, or one for each where GPUs differ."""
    ink = house.ink(axes.figure)
    usable = [row["usable_bytes"] for row in found["rows"]]
    if len(_capacities(found)) == 1:
        (size,) = _capacities(found)
        axes.axvline(
            size / scale, color=ink.accent, linewidth=1.6, linestyle=(0, (4, 2)), gid="usable"
        )
        right = size > 0.75 * scale * axes.get_xlim()[1]
        axes.annotate(
            f"usable {gib(size)}", (size / scale, -0.9), ha="right" if right else "left", va="top",
            xytext=(-5 if right else 5, 0), textcoords="offset points", color=ink.accent,
            fontweight="bold",
        )  # fmt: skip
        return
    for at, one in enumerate(usable):
        if one is not None:
            axes.plot([one / scale] * 2, [at - 0.46, at + 0.46], color=ink.accent, linewidth=1.8,
                      linestyle=(0, (3, 1.5)), gid="usable")  # fmt: skip


def _legend(figure: Figure, axes: Axes, found: Found) -> None:
    """Every category there is; with a single bar its size too; lines where they are not named."""
    from matplotlib.lines import Line2D

    rows, ink = found["rows"], house.ink(axes.figure)
    handles: list[Any] = list(axes.containers)
    names = [name_of(name) for name in found["categories"]]
    if len(rows) == 1:
        parts = rows[0]["parts"]
        names = [
            f"{name} {gib(parts[category])}"
            for name, category in zip(names, found["categories"], strict=True)
        ]
    if any(row["low_bytes"] is not None for row in rows):
        handles.append(Line2D([], [], color=ink.muted, marker="|", linewidth=1.2, markersize=4))
        names.append("band, low to high")
    if len(_capacities(found)) > 1:
        handles.append(Line2D([], [], color=ink.accent, linewidth=1.8, linestyle=(0, (3, 1.5))))
        names.append("usable memory of the GPU")
    house.legend_on_top(figure, handles, names)


def _legend_rows(found: Found) -> int:
    """About how many lines the legend takes."""
    each = 25 if len(found["rows"]) == 1 else 16
    return -(-each * (len(found["categories"]) + 1) // 95)


def page(sheet: Page, found: Found) -> None:
    """The same as text: a bar a row on one scale, `|` where the GPU's memory ends, and every size."""
    from memcalc.output.charts.breakdown_text import breakdown_page

    breakdown_page(sheet, found)
