"""A comparison as a picture: peak memory of every setup against what its GPU has, its speed beside it.

A row a setup, in the order of the comparison; the best one is marked, what does not fit is hatched and
says by how much, what was refused says why. Drawn from the chart's object alone.
Checked by: unit/test_chart_compare.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from memcalc.output.charts import house
from memcalc.output.charts.compare_layout import (
    LABEL_PT,
    Layout,
    Place,
    heights,
    layout,
    reason_lines,
)
from memcalc.output.compare_cells import amount_text, is_best, verdict_text
from memcalc.units import GIB

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from memcalc.output.console import Page

Found = Mapping[str, Any]
Row = Mapping[str, Any]
Column = Mapping[str, Any]
_BAR, _HATCH = 0.15, "/////"
_PAD_PT: Final = 5
#: Inches of a panel at least.
_PANEL: Final = 1.75
#: A bar longer than this many capacities is cut: what fits must stay readable.
_CUT: Final = 2.5
_MEMORY: Final[Column] = {
    "key": "device_used_bytes", "heading": ("peak memory",), "kind": "amount", "scale": 1 / GIB,
}  # fmt: skip
_TITLES: Final = {
    "tokens_per_s_per_gpu": "throughput a GPU", "tokens_per_s": "throughput of all GPUs",
    "usd_per_million_tokens": "cost",
}  # fmt: skip
_UNITS: Final = {
    "amount": "GiB", "rate": "tokens/s", "share": "% of peak FLOP/s", "seconds": "s",
    "usd": "USD a million tokens",
}  # fmt: skip


def draw(figure: Figure, found: Found) -> None:
    """Labels, the memory panel, and one panel for each of found["panels"]."""
    panels = [_MEMORY, *found["panels"]]
    width = house.SIZE[0]
    laid = layout(figure, found, width)
    need = laid.label_inches + _PANEL * len(panels) + 0.3
    width = max(width, min(need, 12.0))
    figure.set_size_inches(width, house.SIZE[1])
    house.legend_on_top(figure, *_legend(figure, found, laid))
    figure.set_size_inches(width, heights(figure, found, laid))
    shares = [1.5, *(1.0 for _ in found["panels"])]
    rest = max(width - 0.3 - laid.label_inches, _PANEL)
    ratios = [laid.label_inches, *(rest * share / sum(shares) for share in shares)]
    axes = figure.subplots(1, len(ratios), sharey=True, width_ratios=ratios)
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.set(w_pad=0.02, h_pad=0.02, wspace=0.0)  # type: ignore[call-arg]
    axes[0].set_ylim(laid.height + 0.05, -0.08)
    _labels(axes[0], found, laid)
    for one, column in zip(axes[1:], panels, strict=True):
        _best_row(one, found, laid)
        _frame(one, column, laid.breaks)
        _bars(one, found, laid, column)
    _reasons(axes[1], axes[-1], laid, rest)


def _labels(axes: Axes, found: Found, laid: Layout) -> None:
    """What tells the setups apart, a column for each option."""
    ink = house.ink(axes.figure)
    axes.set_xlim(0, laid.label_inches)
    axes.set_axis_off()
    for name, left in zip(laid.names, laid.lefts, strict=True):
        axes.annotate(name, (left, 1), xycoords=("data", "axes fraction"), xytext=(0, _PAD_PT),
                      textcoords="offset points", va="bottom", color=ink.muted,
                      in_layout=False)  # fmt: skip
    for place in laid.places:
        best = _is_best(found, place)
        for label, left in zip(place.labels, laid.lefts, strict=True):
            axes.text(left, place.middle, label, va="center", fontsize=LABEL_PT, gid="label",
                      color=ink.text if place.row["reason"] is None else ink.muted,
                      fontweight="bold" if best else "normal", in_layout=False)  # fmt: skip
    _best_row(axes, found, laid)


def _is_best(found: Found, place: Place) -> bool:
    best = found["best"]
    return best is not None and found["count"] > 1 and place.row["command"] == best["command"]


def _best_row(axes: Axes, found: Found, laid: Layout) -> None:
    for place in laid.places:
        if _is_best(found, place):
            top = place.middle - place.height / 2
            axes.axhspan(top, top + place.height, color=house.ink(axes.figure).soft, zorder=0,
                         gid="best")  # fmt: skip


def _frame(axes: Axes, column: Column, breaks: int) -> None:
    """Title, unit and ticks; breaks: how many lines the title leaves free above itself."""
    title = _TITLES.get(column["key"], " ".join(column["heading"]))
    axes.set_title("\n" * breaks + title, pad=_PAD_PT, va="bottom")
    axes.set_xlabel(_UNITS[column["kind"]])
    axes.tick_params(labelleft=False)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")


def _bars(axes: Axes, found: Found, laid: Layout, column: Column) -> None:
    """A panel's bars with what is written at their ends, its axis as long as these need."""
    memory = column is _MEMORY
    limit = _limit(found, laid) if memory else None
    ends = []
    for place in laid.places:
        if place.row["reason"] is not None:
            continue
        end = _memory_bar(axes, place) if memory else _bar(axes, place, column)
        if end is not None:
            said, alarm = _said(place.row, column, memory)
            bold = _is_best(found, place) or (not memory and is_best(found, place.row, column))
            ends.append((place, end, said, alarm, bold))
    most = max((end for _, end, *_ in ends), default=1.0)
    usable = [place.row["usable_bytes"] or 0 for place in laid.places] if memory else [0]
    shown = max(min(most, limit or most), max(usable) / GIB) or 1.0
    axes.set_xlim(0, shown * 1.04)
    house.settle(axes)
    _write(axes, ends, shown, memory)
    _ticks(axes, 5 if memory else 3)
    if memory:
        _capacity(axes, laid)


def _ticks(axes: Axes, most: int) -> None:
    """Round ticks, none so far right that its label would stand beside the next panel's first."""
    from matplotlib.ticker import MaxNLocator

    right = axes.get_xlim()[1]
    ticks = MaxNLocator(most, steps=[1, 2, 5, 10]).tick_values(0, right)
    axes.set_xticks([tick for tick in ticks if tick <= 0.93 * right])


def _memory_bar(axes: Axes, place: Place) -> float | None:
    """What tensors need, then what the allocator keeps and the driver adds; hatched where too much."""
    ink, row = house.ink(axes.figure), place.row
    allocated, used = row["peak_allocated_bytes"], row["device_used_bytes"]
    if allocated is None:
        return None
    over = row["fits"] is False
    shade = ink.alarm if over else ink.series[0]
    axes.barh(place.middle, allocated / GIB, _BAR, color=shade, hatch=_HATCH if over else None,
              gid="allocated")  # fmt: skip
    if used is None:
        return float(allocated / GIB)
    axes.barh(place.middle, (used - allocated) / GIB, _BAR, left=allocated / GIB, color=shade,
              alpha=0.45, hatch=_HATCH if over else None, gid="beyond")  # fmt: skip
    return float(used / GIB)


def _bar(axes: Axes, place: Place, column: Column) -> float | None:
    """A quantity with the band of its step time as a line over it."""
    ink, row = house.ink(axes.figure), place.row
    if row[column["key"]] is None:
        return None
    value, over = row[column["key"]] * column["scale"], row["fits"] is False
    axes.barh(place.middle, value, _BAR, color=ink.grid if over else ink.series[2],
              hatch=_HATCH if over else None, gid=column["key"])  # fmt: skip
    if row["low_s"] is None or over or column["kind"] == "amount":
        return float(value)
    ratios = [row["low_s"] / row["step_s"], row["high_s"] / row["step_s"]]
    rises = column["kind"] in ("seconds", "usd")
    ends = sorted(value * ratio if rises else value / ratio for ratio in ratios)
    axes.plot(ends, [place.middle] * 2, color=ink.text, linewidth=1.0, marker="|", markersize=4,
              gid="band")  # fmt: skip
    return float(max(value, ends[1]))


def _said(row: Row, column: Column, memory: bool) -> tuple[str, bool]:
    """What is written at a bar's end, and whether it is a warning."""
    if memory and row["fits"] is False:
        return verdict_text(row), True
    key = "device_used_bytes" if row["device_used_bytes"] is not None else "peak_allocated_bytes"
    text = amount_text(row[key if memory else column["key"]] * column["scale"], column["kind"])
    return (f"{text}, tight" if memory and row["verdict"] == "tight" else text), False


def _limit(found: Found, laid: Layout) -> float | None:
    """Where the memory axis ends at most: some capacities, or what fits."""
    usable = max((place.row["usable_bytes"] or 0 for place in laid.places), default=0)
    return usable / GIB * _CUT if usable else None


def _write(
    axes: Axes, ends: list[tuple[Place, float, str, bool, bool]], shown: float, memory: bool
) -> None:
    """Text at the end of each bar, the axis widened for the longest; what has no room there is inside."""
    ink, width = house.ink(axes.figure), axes.get_window_extent().width
    right = shown * 1.04
    for place, end, said, _, _ in ends:
        taken = (house.text_width(axes.figure, said, LABEL_PT, "bold") + 30) / width
        start = _clear(min(end, shown), taken * right, right, place.row if memory else {})
        right = max(right, start / (1 - min(0.7, taken)))
    axes.set_xlim(0, right)
    for place, end, said, alarm, bold in ends:
        weight = "bold" if bold or alarm else "normal"
        colour = ink.alarm if alarm else ink.muted if place.row["fits"] is False else ink.text
        text = f"{said} >" if end > right else said
        taken = house.text_width(axes.figure, text, LABEL_PT, weight) / width * right
        start = _clear(end, taken, right, place.row if memory else {})
        inside = start + taken > right
        axes.annotate(
            text, (min(end, right) if inside else start, place.middle), va="center", gid="end",
            xytext=(-3 if inside else 4, 0), textcoords="offset points", fontsize=LABEL_PT,
            ha="right" if inside else "left", color=colour, fontweight=weight, in_layout=False,
            bbox={"facecolor": ink.background, "edgecolor": "none", "pad": 1.5} if inside else None,
        )  # fmt: skip


def _clear(end: float, taken: float, right: float, row: Row) -> float:
    """Where a text begins: at its bar's end, or behind the capacity where that would run through it."""
    usable = (row.get("usable_bytes") or 0) / GIB
    return usable if end < usable < end + taken + 0.06 * right else end


def _capacity(axes: Axes, laid: Layout) -> None:
    """What each row's GPU gives."""
    from matplotlib.patheffects import withStroke

    ink = house.ink(axes.figure)
    for place in laid.places:
        if place.row["usable_bytes"] is not None:
            ends = [place.middle - place.height / 2, place.middle + place.height / 2]
            axes.plot([place.row["usable_bytes"] / GIB] * 2, ends, linewidth=1.8, color=ink.text,
                      path_effects=[withStroke(linewidth=3.2, foreground=ink.background)],
                      gid="usable", solid_capstyle="butt")  # fmt: skip


def _reasons(first: Axes, last: Axes, laid: Layout, inches: float) -> None:
    """Why rows were refused, over all panels: written in the last, which is drawn over the others."""
    ink = house.ink(first.figure)
    for place in laid.places:
        if place.row["reason"] is not None:
            lines = "\n".join(reason_lines(place.row, inches))
            last.annotate(
                lines, (0, place.middle), xycoords=first.transData, xytext=(3, 0),
                textcoords="offset points", va="center", color=ink.muted, fontsize=LABEL_PT,
                in_layout=False, annotation_clip=False, gid="reason",
                bbox={"facecolor": ink.background, "edgecolor": "none", "pad": 1.5},
            )  # fmt: skip


def _legend(figure: Figure, found: Found, laid: Layout) -> tuple[list[Any], list[str]]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    ink, rows = house.ink(figure), [place.row for place in laid.places]
    usable = {row["usable_bytes"] for row in rows if row["usable_bytes"]}
    known = f": {next(iter(usable)) / GIB:,.2f} GiB" if len(usable) == 1 else " of the GPU"
    entries: list[tuple[Any, str, bool]] = [
        (Patch(color=ink.series[0]), "allocated", True),
        (Patch(color=ink.series[0], alpha=0.45), "allocator's cache, driver",
         any(row["device_used_bytes"] for row in rows)),
        (Patch(facecolor=ink.alarm, hatch=_HATCH), "does not fit",
         any(row["fits"] is False for row in rows)),
        (Line2D([], [], color=ink.text, linewidth=1.8), f"usable memory{known}", bool(usable)),
        (Line2D([], [], color=ink.text, linewidth=1.0, marker="|", markersize=5),
         "band of the step time", any(row["low_s"] for row in rows) and bool(found["panels"])),
        (Patch(color=ink.soft), "best that fits", found["best"] is not None and len(rows) > 1),
    ]  # fmt: skip
    shown = [(handle, name) for handle, name, wanted in entries if wanted]
    return [handle for handle, _ in shown], [name for _, name in shown]


def page(sheet: Page, found: Found) -> None:
    """The same as text: a bar of memory a row, its verdict and speed; then what was refused."""
    from memcalc.output.charts.compare_page import compare_page

    compare_page(sheet, found)
