"""Memory over one step as a picture: areas by category, phases behind them, the peak and what causes it.

A measured run is a line on the areas, so that a difference shows as a gap. Drawn from the chart's object
alone. Checked by: unit/test_charts_timeline.py, cli/test_verify.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from memcalc.output.charts import house
from memcalc.output.charts.palette import name_of
from memcalc.output.charts.timeline_text import measured_of, peak_text, timeline_page, unit_of
from memcalc.units import gib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from memcalc.output.console import Page

Found = Mapping[str, Any]
#: The GPU's memory is drawn where the step comes this near to it.
_NEAR: Final = 0.45
_PHASE_PT: Final = 8.0
_PEAK_ROOM: Final = 1.26  # of the highest thing, for what is written above it
_ABOVE_PT: Final = 12.0


def draw(figure: Figure, found: Found) -> None:
    """The step, its phases and its peak."""
    figure.set_size_inches(house.SIZE[0], 4.5)
    axes = figure.add_subplot()
    scale, unit = unit_of(found)
    _areas(axes, found, scale)
    lines = [*_measured(axes, found, scale), *_lines(axes, found, scale)]
    top = max(_tops(found)) / scale
    axes.set_ylim(0, top * _PEAK_ROOM)
    most = max(found["allocations"], _length(measured_of(found)))
    axes.set_xlim(0, most)
    axes.set_ylabel(f"tensors alive, {unit}")
    axes.set_xlabel("allocations of one step, in order")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    unnamed = _phases(axes, found)
    _peak(axes, found, scale)
    _legend(figure, axes, found, [*lines, *unnamed])


def _length(measured: Mapping[str, Any]) -> int:
    return int(measured.get("allocations") or 0)


def is_near(found: Found) -> bool:
    """Whether the GPU's memory belongs into the picture."""
    usable = found["usable_bytes"]
    need = found["device_used_bytes"] or found["peak"]["live_bytes"]
    return usable is not None and need >= _NEAR * usable


def _tops(found: Found) -> list[float]:
    """Everything that has to be on the y axis, in bytes."""
    tops = [found["peak"]["live_bytes"], *measured_of(found).get("live_bytes", [])]
    tops += measured_of(found).get("phase_peaks", {}).values()
    return (
        [*tops, found["usable_bytes"], found["device_used_bytes"] or 0] if is_near(found) else tops
    )


def _areas(axes: Axes, found: Found, scale: int) -> None:
    """An area for each category, stacked."""
    rows, shades = found["rows"], house.colours(axes.figure)
    places = [row["at"] for row in rows]
    floor = [0] * len(rows)
    for name in found["categories"]:
        level = [low + row["parts"][name] for low, row in zip(floor, rows, strict=True)]
        axes.fill_between(
            places, [low / scale for low in floor], [high / scale for high in level], step="post",
            color=shades[name], linewidth=0, label=name, alpha=0.92,
        )  # fmt: skip
        floor = level


def _measured(axes: Axes, found: Found, scale: int) -> list[Any]:
    """The measured run: a line, or, of a record that keeps none, each phase's peak."""
    measured, ink = measured_of(found), house.ink(axes.figure)
    if not measured:
        return []
    levels = [level / scale for level in measured["live_bytes"]]
    if levels:
        return axes.plot(
            measured["at"], levels, color=ink.measured, linewidth=1.1, drawstyle="steps-post",
            label="measured", gid="measured",
        )  # fmt: skip
    lines: list[Any] = []
    for span in found["phases"]:
        level = measured["phase_peaks"].get(span["phase"])
        if level is not None and span["phase"] in ink.phases:
            lines += axes.plot(
                [span["begin"], span["end"]], [level / scale] * 2, color=ink.measured, linewidth=1.4,
                label="measured peak of a phase", gid="measured peak",
            )  # fmt: skip
    return lines[:1]


def _lines(axes: Axes, found: Found, scale: int) -> list[Any]:
    """What the GPU gives and what the driver reports at the peak, where the step comes near to it."""
    if not is_near(found):
        return []
    ink, usable, used = house.ink(axes.figure), found["usable_bytes"], found["device_used_bytes"]
    lines = [axes.axhline(usable / scale, color=ink.accent, linewidth=1.7, linestyle=(0, (4, 2)),
                          label=f"usable {gib(usable)}", gid="usable")]  # fmt: skip
    if used is not None:
        lines.append(axes.axhline(used / scale, color=ink.muted, linewidth=1.2, linestyle=(0, (1, 1.5)),
                                  label=f"driver-used {gib(used)}", gid="used"))  # fmt: skip
    return lines


def _phases(axes: Axes, found: Found) -> list[Any]:
    """A band for each stretch, named where it is wide enough; a handle for those that never are."""
    from matplotlib.patches import Patch

    shades, handles, named = house.ink(axes.figure).phases, {}, set()
    house.settle(axes)
    for span in found["phases"]:
        phase = span["phase"]
        if phase not in shades:
            continue
        axes.axvspan(
            span["begin"], span["end"], color=shades[phase], linewidth=0, zorder=0, gid=phase
        )
        handles[phase] = Patch(color=shades[phase], label=f"{phase} phase")
        ends = axes.transData.transform([(span["begin"], 0), (span["end"], 0)])[:, 0]
        if ends[1] - ends[0] > house.text_width(axes.figure, phase, _PHASE_PT) + 4:
            named.add(phase)
            axes.text(
                (span["begin"] + span["end"]) / 2, 0.985, phase, ha="center", va="top", gid="phase",
                fontsize=_PHASE_PT,
                transform=axes.get_xaxis_transform(), color=house.ink(axes.figure).muted,
            )  # fmt: skip
    return [handle for phase, handle in handles.items() if phase not in named]


def _peak(axes: Axes, found: Found, scale: int) -> None:
    """A mark at the peak; its text above it, inside the axes."""
    ink, peak = house.ink(axes.figure), found["peak"]
    place = (peak["at"], peak["live_bytes"] / scale)
    axes.plot(*place, marker="o", markersize=5, color=ink.alarm, markeredgecolor=ink.background,
              markeredgewidth=0.8, zorder=6, clip_on=False, gid="peak")  # fmt: skip
    box = axes.get_window_extent()
    width = house.text_width(axes.figure, peak_text(found), weight="bold")
    at = axes.transData.transform(place)[0]
    left = min(max(at - width / 2, box.x0 + 8), box.x1 - width - 8)
    axes.annotate(
        peak_text(found), place, xytext=((left - at) * 72 / axes.figure.dpi, _ABOVE_PT),
        textcoords="offset points", ha="left", va="bottom", color=ink.alarm, fontweight="bold",
        bbox={"facecolor": ink.background, "edgecolor": "none", "pad": 1.5, "alpha": 0.85},
        zorder=6, gid="peak text",
    )  # fmt: skip


def _legend(figure: Figure, axes: Axes, found: Found, more: list[Any]) -> None:
    """Categories from the bottom up; lines, and phases that are not named in the picture."""
    areas = list(axes.collections)[: len(found["categories"])]
    names = [name_of(name) for name in found["categories"]]
    house.legend_on_top(figure, [*areas, *more], [*names, *(str(h.get_label()) for h in more)])


def page(sheet: Page, found: Found) -> None:
    """The same as text."""
    timeline_page(sheet, found)
