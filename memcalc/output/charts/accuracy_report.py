"""Charts of REPORT.md: errors of every class, exact bytes beside the textbook's, bands and what lay in them.

Each is drawn from an object of `chart_objects`, which holds figures of the report alone.
Checked by: unit/test_report_accuracy_text.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from memcalc.output.charts import house

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Found = Mapping[str, Any]
#: Errors below are drawn as on a linear scale, in percent.
_LINEAR: Final = 1.0
_ROW, _SMALL = 0.28, 7.0  # inches a class, points of a dot


def chart_objects(found: Found) -> dict[str, dict[str, Any]]:
    """Name of a chart -> its object, with the head every chart has."""
    source = f"memcalc {found['memcalc']}; benchmarks/REPORT.md"
    classes = [one for one in found["classes"] if one["memcalc"]]
    made: dict[str, dict[str, Any]] = {
        "classes": {
            "title": "How far predictions lie from what is true, by class",
            "subtitle": "dot: median error, line: to the error nine of ten stay below, tick: the "
            "worst",
            "classes": classes,
        },
        "exact": {
            "title": "Bytes that an oracle counted: predicted over true",
            "subtitle": "every configuration of the exact classes but caches; on the line 1 is "
            "equal to the byte",
            "points": [one for one in found["points"] if one["group"].startswith("Exact")],
        },
    }
    if found["bands"]:
        held = found["bands"]["step time"]["sources"]
        made["bands"] = {
            "title": "Step times of published runs, each with the band made without its source",
            "subtitle": f"{held['inside']} of {held['n']} runs inside; measured seconds over "
            "predicted",
            "runs": found["bands"]["runs"],
        }
    return {name: {"chart": name, "source": source, **one} for name, one in made.items()}


def draw_classes(figure: Figure, found: Found) -> None:
    """Two lines a class: memcalc above, the textbook below."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter

    ink, classes = house.ink(figure), found["classes"]
    figure.set_size_inches(7.2, 1.3 + _ROW * len(classes))
    axes = figure.add_subplot()
    for place, one in enumerate(classes):
        for key, colour, at in (("memcalc", ink.accent, -0.15), ("textbook", ink.muted, 0.18)):
            if one[key] is not None:
                _spread(axes, one[key], colour, place + at, f"{key} {one['name']}")
    axes.set_xscale("symlog", linthresh=_LINEAR, linscale=0.6)
    axes.set(xlim=(-0.12, 2e4), ylim=(len(classes) - 0.4, -0.6), xlabel="error, %")
    axes.set_yticks(range(len(classes)), [_label(one) for one in classes], fontsize=8)
    axes.set_xticks([0, 1, 3, 10, 30, 100, 300, 1000, 10000])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.grid(True, axis="x")
    axes.grid(False, axis="y")
    _sections(axes, classes)
    handles = [
        Line2D([], [], marker="o", markersize=5, color=colour, label=name)
        for name, colour in (("memcalc", ink.accent), ("closed forms of the textbook", ink.muted))
    ]
    house.legend_on_top(figure, handles, [str(handle.get_label()) for handle in handles])


def _label(one: Found) -> str:
    """A class's name, short, with its n."""
    name = one["name"].partition(":")[0] if one["group"].startswith("Speed") else one["name"]
    words = {"Memory of": "memory: ", "Speed of p": "speed: ", "Serving": "serving: ",
             "Fine-tuning with": "adapters: ", "Time on a": "CPU: ", "A GPU": "GPU: "}  # fmt: skip
    lead = next((word for start, word in words.items() if one["group"].startswith(start)), "")
    return f"{lead}{name}  ({one['n']:,})"


def _sections(axes: Axes, classes: Sequence[Found]) -> None:
    """A line between groups."""
    ink = house.ink(axes.figure)
    for place, (one, other) in enumerate(zip(classes, classes[1:], strict=False)):
        if one["group"] != other["group"]:
            axes.axhline(place + 0.5, color=ink.grid, linewidth=0.8, zorder=0)


def _spread(axes: Axes, score: Found, colour: str, y: float, name: str) -> None:
    median, most = score["median_pct"], score["worst_pct"]
    axes.plot([median, score["p90_pct"]], [y, y], color=colour, linewidth=1.6, gid=name)
    axes.plot([median], [y], marker="o", markersize=4, color=colour, clip_on=False, zorder=4)
    axes.plot([most], [y], marker="|", markersize=6, color=colour)


def draw_exact(figure: Figure, found: Found) -> None:
    """Predicted over the oracle's bytes by the bytes, memcalc and textbook."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, NullFormatter

    ink = house.ink(figure)
    figure.set_size_inches(7.2, 4.4)
    axes = figure.add_subplot()
    for key, colour, layer in (("textbook_pct", ink.muted, 2), ("error_pct", ink.accent, 3)):
        at = [
            (size, 1 + error / 100)
            for one in found["points"] if "cache" not in one["name"] and one["name"] != "parameters"
            for size, error in zip(one["measured"], one[key], strict=True) if error is not None
        ]  # fmt: skip
        sizes, ratios = [size for size, _ in at], [ratio for _, ratio in at]
        axes.scatter(
            sizes, ratios, s=_SMALL, color=colour, alpha=0.6, linewidths=0,
                     zorder=layer, gid=key)  # fmt: skip
    axes.set(xscale="log", yscale="log", ylim=(0.03, 30), xlabel="bytes the oracle counted",
             ylabel="predicted over true")  # fmt: skip
    axes.set_yticks([0.03, 0.1, 0.3, 1, 3, 10, 30])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(
        [1e5, 1e6, 1e7, 1e8, 1e9, 1e10], ["0.1 MB", "1 MB", "10 MB", "0.1 GB", "1 GB", "10 GB"]
    )
    handles = [
        Line2D([], [], linestyle="", marker="o", markersize=5, color=colour, label=name)
        for name, colour in (("memcalc", ink.accent), ("closed forms of the textbook", ink.muted))
    ]
    house.legend_on_top(figure, handles, [str(handle.get_label()) for handle in handles])


def draw_bands(figure: Figure, found: Found) -> None:
    """Runs in the order of measured over predicted, by source; the band as a grey line behind "
    "each."""
    from matplotlib.lines import Line2D

    ink = house.ink(figure)
    figure.set_size_inches(7.2, 4.4)
    axes = figure.add_subplot()
    runs = sorted(found["runs"], key=lambda run: (run["factor"], run["id"]))
    for place, run in enumerate(runs):
        inside = run["low"] <= run["factor"] <= run["high"]
        axes.plot(
            [place, place], [run["low"], run["high"]], color=ink.grid, linewidth=1.8, zorder=1
        )
        axes.plot([place], [run["factor"]], marker="o", markersize=2.6, zorder=3,
                  color=ink.accent if inside else ink.alarm, gid=run["id"])  # fmt: skip
    axes.axhline(1, color=ink.text, linewidth=0.9, zorder=2)
    axes.set(xlim=(-2, len(runs) + 1), ylabel="measured over predicted seconds",
             xlabel="evaluated runs, in the order of that ratio")  # fmt: skip
    handles: list[Any] = [
        Line2D([], [], linestyle="", marker="o", markersize=4, color=ink.accent, label="inside"),
        Line2D([], [], linestyle="", marker="o", markersize=4, color=ink.alarm, label="outside"),
        Line2D([], [], color=ink.grid, linewidth=3, label="its band"),
    ]
    house.legend_on_top(figure, handles, [str(handle.get_label()) for handle in handles])


DRAW: Final = {"classes": draw_classes, "exact": draw_exact, "bands": draw_bands}
