"""The serving chart: tokens/s and the time of a token over batches, memory over contexts; and as text.

What does not fit is hollow; a dashed line marks the largest batch and context that fit, and in the panel of
memory what a GPU has for it. Drawn from the chart's object alone (`planning/charts/serving.py: serving`).
Checked by: unit/test_chart_serving.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from memcalc.output.charts import house
from memcalc.output.charts.sweep_cells import thinned
from memcalc.output.charts.sweep_ink import finding, finding_lines, legend, legend_rows, shades
from memcalc.output.charts.sweep_numbers import TICKS
from memcalc.output.charts.text import ending, heading
from memcalc.output.time_text import duration
from memcalc.units import GIB, gib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from memcalc.output.console import Page

Found = Mapping[str, Any]
Row = Mapping[str, Any]
_WIDTH, _PANEL, _AROUND, _GAP = 7.2, 1.55, 1.7, 0.22
_TICKS = 12


def draw(figure: Figure, found: Found) -> None:
    """Draw the chart's object on an empty figure of the house."""
    keys = _handles(figure, found)
    above = 0.2 * len(finding_lines(figure, found["says"])) + 0.08
    below = 0.2 * legend_rows([handle.get_label() for handle in keys]) + 0.05
    panels = found["panels"]
    inches = [above, *[_PANEL] * len(panels), below]
    figure.set_size_inches(_WIDTH, sum(inches) + _AROUND + _GAP)
    grid = figure.add_gridspec(len(inches), 1, height_ratios=inches)
    finding(figure, grid[0], found["says"], found["max_batch"] == 0 and found["max_context"] == 0)
    shared: dict[str, Axes] = {}
    for nth, panel in enumerate(panels, 1):
        axes = figure.add_subplot(grid[nth], sharex=shared.get(panel["sweep"]))
        shared.setdefault(panel["sweep"], axes)
        last = nth == len(panels) or panels[nth]["sweep"] != panel["sweep"]
        _panel(axes, found, panel, last)
    legend(figure, grid[-1], keys)


def rows_of(found: Found, sweep: str) -> list[Row]:
    """The rows of one sweep, by rising size."""
    return sorted((row for row in found["rows"] if row["sweep"] == sweep), key=lambda r: r[sweep])


def _panel(axes: Axes, found: Found, panel: Mapping[str, Any], last: bool) -> None:
    sweep, key = panel["sweep"], panel["key"]
    rows = rows_of(found, sweep)
    ink = house.ink(axes.figure)
    is_memory = key == "need_bytes"
    colour = shades(ink).memory[2] if is_memory else shades(ink).rate[2]
    axes.set_gid(key)
    axes.set_title(f"{panel['label']}, {panel['unit']}", pad=4)
    known = [(row[sweep], row[key] * panel["scale"], row) for row in rows if row[key] is not None]
    _scale(axes, [row[sweep] for row in rows])
    if known:
        axes.plot([x for x, _, _ in known], [y for _, y, _ in known], color=colour, gid="all")
    for fits, face in ((True, colour), (None, colour), (False, ink.background)):
        of = [(x, y) for x, y, row in known if row["fits"] is fits]
        if of:
            axes.plot([x for x, _ in of], [y for _, y in of], "o", color=colour, markersize=5.0,
                      markerfacecolor=face, markeredgewidth=1.2, zorder=3, gid=f"fits {fits}")  # fmt: skip
    tops = [y for _, y, _ in known]
    if is_memory and found["limit_bytes"]:
        limit = found["limit_bytes"] * panel["scale"]
        axes.axhline(limit, color=ink.alarm, linewidth=1.2, gid="limit")
        tops = [*(top for top in tops if top < 2.2 * limit), limit]
    if key != "decode_tokens_per_s":
        axes.set_ylim(0, 1.12 * max(tops, default=1.0))
    elif known:
        axes.set_yscale("log")
    most = found["max_batch" if sweep == "batch" else "max_context"]
    low, high = axes.get_xlim()
    if most and low <= most <= high:
        axes.axvline(most, color=ink.accent, linestyle=(0, (4, 2)), linewidth=1.2, gid="most")
        axes.annotate(f"{most:,}", (most, 1), xytext=(-4, -2), textcoords="offset points", va="top",
                      ha="right", xycoords=axes.get_xaxis_transform(), color=ink.accent, gid="most",
                      fontsize=8.5)  # fmt: skip
    _frame(axes, panel, rows, last)


def _scale(axes: Axes, at: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    edge = (at[-1] / at[0]) ** 0.03 if len(at) > 1 else 1.5
    axes.set_xlim(at[0] / edge, at[-1] * edge)


def _frame(axes: Axes, panel: Mapping[str, Any], rows: Sequence[Row], last: bool) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    axes.minorticks_off()
    if panel["key"] == "decode_tokens_per_s":
        low, high = axes.get_ylim()
        steps = (1.0, 2.0, 5.0) if high < 200 * low else (1.0,)
        axes.yaxis.set_major_locator(LogLocator(subs=steps))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(TICKS)
    sizes = [row[panel["sweep"]] for row in rows]
    shown = [sizes[i] for i in thinned(len(sizes), _TICKS)]
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(shown, [_size_text(size) for size in shown])
    axes.tick_params(labelbottom=last)
    if last:
        axes.set_xlabel("sequences" if panel["sweep"] == "batch" else "positions of a sequence")


def _size_text(size: int) -> str:
    """A tick: 8k for 8192, 300."""
    return f"{size // 1024:,}k" if size >= 1024 and size % 1024 == 0 else f"{size:,}"


def _handles(figure: Figure, found: Found) -> list[Any]:
    """What lines and markers mean; only of what is there."""
    from matplotlib.lines import Line2D

    ink = house.ink(figure)
    marks: list[Any] = []
    if found["max_batch"] or found["max_context"]:
        marks.append(Line2D([], [], color=ink.accent, linestyle=(0, (4, 2)), linewidth=1.2,
                            label="the largest that fits"))  # fmt: skip
    if found["limit_bytes"]:
        marks.append(Line2D([], [], color=ink.alarm, linewidth=1.2,
                            label=f"what a GPU has for it: {gib(found['limit_bytes'])}"))  # fmt: skip
    if any(row["fits"] is False for row in found["rows"]):
        marks.append(Line2D([], [], marker="o", linestyle="", color=ink.muted, markersize=5.0,
                            markerfacecolor=ink.background, label="does not fit"))  # fmt: skip
    return marks


def page(sheet: Page, found: Found) -> None:
    """The same for a terminal: a table for each sweep."""
    heading(sheet, found)
    nothing = found["max_batch"] == 0 and found["max_context"] == 0
    sheet.line(found["says"], "bold red" if nothing else "bold")
    sheet.line()
    for sweep, word in (("batch", "sequences"), ("context", "positions")):
        columns = [word, ">tokens/s", ">a token", ">prompts", ">cache", ">needed", ">fits"]
        rows = [_cells(row, sweep) for row in rows_of(found, sweep)]
        at = f"context {found['context']}" if sweep == "batch" else f"batch {found['batch']}"
        sheet.table(columns, rows, f"Over {word} at {at}")
    ending(sheet, found)


def _cells(row: Row, sweep: str) -> list[str]:
    """A row of the table."""
    unknown = row["decode_tokens_per_s"] is None
    return [
        f"{row[sweep]:,}",
        "-" if unknown else f"{row['decode_tokens_per_s']:,.0f}",
        "-" if unknown else duration(row["time_per_output_token_s"]),
        "-" if unknown else duration(row["prefill_s"]),
        gib(row["kv_cache_bytes"]) if row["kv_cache_bytes"] >= GIB / 100 else "-",
        gib(row["need_bytes"]),
        {True: "yes", False: "no", None: "-"}[row["fits"]],
    ]
