"""The pipeline chart: the schedule of every stage over time, and beside it what each stage holds.

A bar is one action on one micro-batch: its colour says forward, backward or gradients of weights, its
shade the chunk where a stage has several, its number the micro-batch where there is room. What is left
of a stage's row is the time it waits. Drawn from the chart's object alone.
Checked by: unit/test_chart_pipeline.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from memcalc.output.charts import house
from memcalc.output.charts.pipeline_text import page
from memcalc.output.charts.roofline_labels import settled
from memcalc.units import GIB

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw", "page"]

Found = Mapping[str, Any]
#: Kind of an action -> its place among the house's series.
KINDS: Final = {
    "forward": 0, "backward": 4, "gradients of inputs": 4, "gradients of weights": 3,
}  # fmt: skip
_BAR = 0.8  # of a row's height
_ROW_IN, _LEAST_ROW_IN, _ROWS_IN = 0.5, 0.27, 3.0
#: How far the last chunk's colour goes towards the background.
_FADED = 0.6
_NUMBER_PT, _EDGE_PX = 7.0, 3.5


def draw(figure: Figure, found: Found) -> None:
    """Stages from the top down, time to the right; memory in a panel of its own."""
    row = min(_ROW_IN, max(_LEAST_ROW_IN, _ROWS_IN / found["pp"]))
    figure.set_size_inches(7.2, 2.2 + row * found["pp"])
    schedule, memory = figure.subplots(1, 2, width_ratios=(3.3, 1), sharey=True)
    scale, unit = (1.0, "s") if found["step_s"] >= 1 else (1e3, "ms")
    _bars(schedule, found, scale)
    schedule.set(xlim=(0, found["step_s"] * scale), xlabel=f"time in the step, {unit}",
                 ylim=(found["pp"] - 0.45, -0.55))  # fmt: skip
    every = 1 if found["pp"] <= 16 else -(-found["pp"] // 16)
    shown = range(0, found["pp"], every)
    schedule.set_yticks(shown, [f"stage {stage}" for stage in shown])
    schedule.grid(False)
    _memory(memory, found)
    _legend(figure, found)
    settled(figure, found)
    _numbers(schedule, found, scale)


def _colour(figure: Figure, row: Mapping[str, Any], found: Found) -> tuple[float, float, float]:
    """The colour of an action: its kind's, fainter for later chunks of the stage."""
    from matplotlib.colors import to_rgb

    ink = house.ink(figure)
    base, ground = to_rgb(ink.series[KINDS[row["kind"]]]), to_rgb(ink.background)
    share = _faded(row["chunk"] // found["pp"], found["vpp"])
    return _mixed(base, ground, share)


def _faded(place: int, vpp: int) -> float:
    return _FADED * place / (vpp - 1) if vpp > 1 else 0.0


def _mixed(
    one: Sequence[float], other: Sequence[float], share: float
) -> tuple[float, float, float]:
    red, green, blue = (a + (b - a) * share for a, b in zip(one, other, strict=True))
    return red, green, blue


def _bars(axes: Axes, found: Found, scale: float) -> None:
    """Every action, on a ground that shows where it waits; exchanges and optimizer after the schedule."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    ink = house.ink(figure)
    groups: dict[tuple[int, str, int], list[Mapping[str, Any]]] = {}
    for row in found["rows"]:
        groups.setdefault((row["stage"], row["kind"], row["chunk"]), []).append(row)
    size = axes.get_window_extent().width / found["step_s"]
    exchanges, optimizer = found["after_s"]["exchanges"], found["after_s"]["optimizer"]
    span = found["span_s"]
    for stage in range(found["pp"]):
        low = stage - _BAR / 2
        axes.broken_barh([(0, span * scale)], (low, _BAR), color=ink.grid, gid="waits")
        axes.broken_barh([(span * scale, exchanges * scale)], (low, _BAR), gid="exchanges",
                         color=ink.series[6])  # fmt: skip
        axes.broken_barh([((span + exchanges) * scale, optimizer * scale)], (low, _BAR),
                         color=ink.categories["optimizer"], gid="optimizer")  # fmt: skip
    for (stage, kind, chunk), rows in groups.items():
        spans = [(r["start_s"] * scale, (r["end_s"] - r["start_s"]) * scale) for r in rows]
        edge = 0.4 if min(r["end_s"] - r["start_s"] for r in rows) * size > _EDGE_PX else 0.0
        axes.broken_barh(
            spans, (stage - _BAR / 2, _BAR), facecolor=_colour(figure, rows[0], found),
            edgecolor=ink.background, linewidth=edge, gid=f"{stage} {kind} {chunk}",
        )  # fmt: skip


def _numbers(axes: Axes, found: Found, scale: float) -> None:
    """Micro-batches in their bars: those of a kind, where all of that kind have room."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    pixel = figure.dpi / 72
    wide = axes.get_window_extent().width / (axes.get_xlim()[1] - axes.get_xlim()[0]) * scale
    digits = len(str(found["micro_batches"] - 1))
    least: dict[str, float] = {}
    for row in found["rows"]:
        points = (row["end_s"] - row["start_s"]) * wide / pixel
        least[row["kind"]] = min(points, least.get(row["kind"], points))
    sizes = {kind: min(_NUMBER_PT, 0.75 * width / (0.64 * digits)) for kind, width in least.items()}
    for row in found["rows"]:
        size = sizes[row["kind"]]
        if size < 0.75 * _NUMBER_PT:
            continue
        middle = (row["start_s"] + row["end_s"]) / 2 * scale
        ground = _colour(figure, row, found)
        axes.text(middle, row["stage"], str(row["micro_batch"]), ha="center", fontsize=size,
                  va="center_baseline", color=_on(ground)).set_in_layout(False)  # fmt: skip


def _on(ground: Sequence[float]) -> str:
    """Black or white, whichever is read on a colour."""
    red, green, blue = ground
    return "#16191d" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "#ffffff"


def _memory(axes: Axes, found: Found) -> None:
    """What each stage holds at its peak, against what the GPU has; micro-batches in flight beside it."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    ink = house.ink(figure)
    stages = found["stages"]
    left = [0.0] * len(stages)
    for key, (_, colour) in held(ink).items():
        sizes = [stage[key] / GIB for stage in stages]
        axes.barh([s["stage"] for s in stages], sizes, _BAR, left=left, color=colour, gid=key)
        left = [start + size for start, size in zip(left, sizes, strict=True)]
    usable = found["usable_bytes"]
    if usable is not None:
        axes.axvline(usable / GIB, color=ink.text if found["fits"] else ink.alarm, gid="usable")
        left.append(usable / GIB)
    axes.set(xlim=(0, max(left) * 1.06), xlabel="GiB a GPU at its peak")
    axes.grid(False)
    axes.tick_params(axis="y", labelleft=False)
    flight = axes.secondary_yaxis("right")
    flight.spines["right"].set_visible(False)
    every = -(-len(stages) // 16)
    flight.set_yticks([stage["stage"] for stage in stages][::every],
                      ["+".join(map(str, stage["in_flight"])) for stage in stages][::every])  # fmt: skip
    flight.set_ylabel("micro-batches in flight", color=ink.muted)
    flight.tick_params(length=0)


def held(ink: Any) -> dict[str, tuple[str, str]]:
    """Part of a stage's bytes -> (what it is called, colour)."""
    return {
        "states_bytes": ("model states", ink.categories["workspace"]),
        "activations_bytes": ("activations", ink.categories["activations"]),
        "rest_bytes": ("all else", ink.categories["overhead"]),
    }


def _legend(figure: Figure, found: Found) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    ink = house.ink(figure)
    kinds = [kind for kind in KINDS if any(row["kind"] == kind for row in found["rows"])]
    handles: list[Any] = [
        Patch(color=colour, label=name)
        for kind in kinds
        for name, colour in _shades(ink, kind, found)
    ]
    waits = f"waits: bubble {100 * found['bubble_share']:.1f} % of the step"
    handles.append(Patch(color=ink.grid, label=waits))
    if found["after_s"]["exchanges"]:
        handles.append(Patch(color=ink.series[6], label="exchanges"))
    if found["after_s"]["optimizer"]:
        handles.append(Patch(color=ink.categories["optimizer"], label="optimizer"))
    handles += [Patch(color=colour, label=name) for name, colour in held(ink).values()]
    if found["usable_bytes"] is not None:
        said = f"usable {found['usable_bytes'] / GIB:.2f} GiB"
        handles.append(Line2D([], [], color=ink.text if found["fits"] else ink.alarm, label=said))
    house.legend_on_top(figure, handles, [str(handle.get_label()) for handle in handles])


def _shades(ink: Any, kind: str, found: Found) -> list[tuple[str, Any]]:
    """What a legend calls a kind of action, with its colour: first and last chunk where there are several."""
    from matplotlib.colors import to_rgb

    base, ground = to_rgb(ink.series[KINDS[kind]]), to_rgb(ink.background)
    if found["vpp"] == 1:
        return [(kind, base)]
    return [(f"{kind}, first chunk", base), ("last chunk", _mixed(base, ground, _FADED))]
