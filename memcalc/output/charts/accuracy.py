"""The accuracy chart: predicted over measured with the 1:1 line, and how the errors are spread.

A column a quantity, memory and throughput. Colours are GPUs; hollow points are of sources that a
constant was fitted to, crosses are shown and not scored. Drawn from the chart's object alone.
Checked by: unit/test_chart_accuracy.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from memcalc.output.charts import house
from memcalc.output.charts.accuracy_text import page
from memcalc.units import GIB

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw", "page"]

Found = Mapping[str, Any]
Row = Mapping[str, Any]
#: Unit of a row -> (its divisor, unit on the axes).
UNITS: Final = {"bytes": (GIB, "GiB"), "tokens/s": (1.0, "tokens/s")}
_COLOURS = 6  # GPUs with a colour of their own
_OTHER = "others"
_DOT = 22.0


def draw(figure: Figure, found: Found) -> None:
    """Points, and below them (beside them, of one quantity) the histogram of the same figures."""
    panels = found["panels"]
    if not panels:
        _nothing(figure, found)
        return
    alone = len(panels) == 1
    figure.set_size_inches(7.2, 4.2 if alone else 6.0)
    grid = figure.add_gridspec(
        *((1, 2) if alone else (2, 2)), height_ratios=None if alone else (2.6, 1)
    )
    colours = _gpu_colours(figure, found["rows"])
    for column, panel in enumerate(panels):
        rows = [row for row in found["rows"] if row["what"] == panel["what"]]
        _points(figure.add_subplot(grid[0, column]), found, panel, (rows, colours))
        _errors(figure.add_subplot(grid[0, 1] if alone else grid[1, column]), found, panel)
    _legend(figure, found, colours)


def _nothing(figure: Figure, found: Found) -> None:
    axes = figure.add_subplot()
    axes.axis("off")
    axes.text(0.5, 0.5, found["says"], ha="center", va="center", wrap=True)


def gpu_name(row: Row) -> str:
    """What a legend calls a row's GPU: its chip, whatever memory it has."""
    name = str(row["gpu"] or "no GPU")
    head, _, tail = name.partition("-")
    return name if not tail.endswith("gb") else head


def _gpu_colours(figure: Figure, rows: Sequence[Row]) -> dict[str, str]:
    """GPU -> colour, the commonest first; the rest share one."""
    ink = house.ink(figure)
    counts = Counter(gpu_name(row) for row in rows)
    names = [name for name, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    if len(names) <= _COLOURS + 1:
        return dict(zip(names, ink.series, strict=False))
    return {**dict(zip(names[:_COLOURS], ink.series, strict=False)), _OTHER: ink.series[6]}


def _points(
    axes: Axes, found: Found, panel: Mapping[str, Any], drawn: tuple[list[Row], dict[str, str]]
) -> None:
    rows, colours = drawn
    divisor, unit = UNITS[panel["unit"]]
    sizes = [row[key] / divisor for row in rows for key in ("predicted", "measured")]
    low, high = _limits(sizes)
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), aspect="equal",
             xlabel=f"measured {panel['label']}, {unit}", ylabel=f"predicted, {unit}")  # fmt: skip
    axes.grid(False)
    _plain_ticks(axes, (low, high))
    _guides(axes, found, (low, high))
    for row in sorted(rows, key=lambda row: (row["scored"], not row["fitted"])):
        _dot(axes, row, colours.get(gpu_name(row), colours.get(_OTHER, "")), divisor)
    axes.set_title("\n".join(told(panel)), fontsize=8, linespacing=1.3, pad=4)


def _limits(sizes: Sequence[float]) -> tuple[float, float]:
    """Ends of both axes: all figures, and never less than a decade, however alike they are."""
    low, high = min(sizes) * 0.7, max(sizes) * 1.4
    missing = max(1.0, 10 / (high / low)) ** 0.5
    return low / missing, high * missing


def _plain_ticks(axes: Axes, limits: tuple[float, float]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    steps = (1, 2, 5) if limits[1] / limits[0] < 200 else (1,)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=steps, numticks=20))
        axis.set_major_formatter(FuncFormatter(_tick))
        axis.set_minor_formatter(NullFormatter())


def _tick(value: float, _: int) -> str:
    return f"{value / 1000:,.10g}k" if value >= 1000 else f"{value:,.10g}"


def _guides(axes: Axes, found: Found, limits: tuple[float, float]) -> None:
    """The 1:1 line, and a band for each of the guides, the widest first."""
    ink = house.ink(axes.figure)
    for share, shade in _bands(found, ink):
        over, under = 1 + share / 100, 1 - share / 100
        axes.fill_between(limits, [x * under for x in limits], [x * over for x in limits],
                          color=shade, linewidth=0, zorder=1, gid=f"guide {share}")  # fmt: skip
    axes.plot(limits, limits, color=ink.text, linewidth=1.0, zorder=2, gid="1:1")


def _bands(found: Found, ink: Any) -> list[tuple[float, str]]:
    """Guides with their shades, the widest first."""
    shares = sorted(found["guides_pct"], reverse=True)
    return list(zip(shares, (ink.soft, ink.grid), strict=False))


def _dot(axes: Axes, row: Row, colour: str, divisor: float) -> None:
    at = row["measured"] / divisor, row["predicted"] / divisor
    name = f"{row['what']} {row['kind']} {row['id']}"
    if not row["scored"]:
        axes.scatter(*at, s=_DOT, marker="x", color=colour, linewidths=1.0, zorder=3, gid=name)
        return
    face = "none" if row["fitted"] else colour
    axes.scatter(*at, s=_DOT, facecolors=face, edgecolors=colour, linewidths=0.9, alpha=0.8, zorder=4,
                 gid=name)  # fmt: skip


def told(panel: Mapping[str, Any]) -> list[str]:
    """The scores of a panel, in a few lines."""
    score = panel["score"]
    if not panel["n"] or score is None:
        lines = ["nothing scored"]
    else:
        within = panel["within_pct"].items()
        lines = [
            f"n {panel['n']}: median error {score['median_pct']:.1f} %, mean {score['mae_pct']:.1f} %",
            f"bias {score['bias_pct']:+.1f} %, worst {panel['worst'][0]['error_pct']:+.0f} %",
            ", ".join(f"{100 * share:.0f} % within {edge} %" for edge, share in within),
        ]
    fitted = panel["fitted_score"]
    if fitted is not None and panel["fitted_n"]:
        lines.append(
            f"sources fitted to: n {panel['fitted_n']}, median {fitted['median_pct']:.1f} %"
        )
    return lines


def _errors(axes: Axes, found: Found, panel: Mapping[str, Any]) -> None:
    """Figures by error; what lies beyond the last bins is written at the edge."""
    from matplotlib.ticker import MaxNLocator

    ink = house.ink(axes.figure)
    edges = found["edges_pct"]
    counts, fitted = panel["histogram"]["counts"], panel["fitted_histogram"]["counts"]
    width = edges[1] - edges[0]
    style: dict[str, Any] = {"width": width, "align": "edge", "linewidth": 0.7}
    axes.bar(edges[:-1], counts, color=ink.accent, edgecolor=ink.background, gid="scored", **style)
    if any(fitted):
        axes.bar(edges[:-1], fitted, bottom=counts, facecolor="none", edgecolor=ink.muted,
                 gid="fitted", **style)  # fmt: skip
    axes.axvline(0, color=ink.text, linewidth=1.0)
    for share, shade in _bands(found, ink):
        axes.axvspan(-share, share, color=shade, linewidth=0, zorder=0)
    most = max([a + b for a, b in zip(counts, fitted, strict=True)] + [1])
    axes.set(xlim=(edges[0], edges[-1]), ylim=(0, most * 1.15), ylabel="figures",
             xlabel=f"error of predicted {panel['label']}, %")  # fmt: skip
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    for key, x, side in (("below", edges[0], "left"), ("above", edges[-1], "right")):
        count = panel["histogram"][key] + panel["fitted_histogram"][key]
        if count:
            said = f"{count} below {edges[0]}" if key == "below" else f"{count} above {edges[-1]}"
            axes.annotate(said, (x, most * 1.12), xytext=(4 if side == "left" else -2, 0),
                          textcoords="offset points", ha=side, va="top", fontsize=8,
                          color=ink.muted)  # fmt: skip


def _legend(figure: Figure, found: Found, colours: Mapping[str, str]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    ink, rows = house.ink(figure), found["rows"]
    style: dict[str, Any] = {"linestyle": "", "markersize": 5}
    handles: list[Any] = [
        Line2D([], [], marker="o", color=colour, label=name, **style)
        for name, colour in colours.items()
    ]
    if any(row["fitted"] for row in rows):
        handles.append(Line2D([], [], marker="o", markerfacecolor="none", color=ink.muted,
                              label="of a source fitted to", **style))  # fmt: skip
    if any(not row["scored"] for row in rows):
        handles.append(Line2D([], [], marker="x", color=ink.muted, label="not scored", **style))
    handles.append(Line2D([], [], color=ink.text, linewidth=1.0, label="1:1"))
    handles += [
        Patch(color=shade, label=f"within {share} %") for share, shade in _bands(found, ink)[::-1]
    ]
    house.legend_on_top(figure, handles, [str(handle.get_label()) for handle in handles])
