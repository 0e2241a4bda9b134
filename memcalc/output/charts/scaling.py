"""The scaling chart: tokens/s over GPUs against the ideal, and utilisation below it; and as text.

Colours tell setups apart, solid is weak scaling and dashed strong. What does not fit is hollow, with by
how much where there is room; what was refused is a cross at the foot. Drawn from the chart's object
alone (`planning/charts/scaling.py: scaling`). Checked by: unit/test_chart_scaling.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from memcalc.output.charts.scaling_marks import foot, handles, missed_notes, points, rows_of
from memcalc.output.charts.sweep_cells import MISSES, SAID, state, thinned
from memcalc.output.charts.sweep_ink import finding, finding_lines, legend, legend_rows
from memcalc.output.charts.text import ending, heading
from memcalc.units import gib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from memcalc.output.console import Page

Found = Mapping[str, Any]
Row = Mapping[str, Any]
_WIDTH, _UPPER, _LOWER, _AROUND = 7.2, 2.3, 1.3, 1.65
_TICKS = 12


def draw(figure: Figure, found: Found) -> None:
    """Draw the chart's object on an empty figure of the house."""
    keys = handles(figure, found)
    above = 0.2 * len(finding_lines(figure, found["says"])) + 0.08
    below = 0.2 * legend_rows([handle.get_label() for handle in keys]) + 0.05
    inches = [above, _UPPER, _LOWER, below]
    figure.set_size_inches(_WIDTH, sum(inches) + _AROUND)
    grid = figure.add_gridspec(4, 1, height_ratios=inches)
    finding(figure, grid[0], found["says"], found["fits_count"] == 0)
    upper, lower = found["panels"]
    first = figure.add_subplot(grid[1])
    second = figure.add_subplot(grid[2], sharex=first)
    for axes, panel in ((first, upper), (second, lower)):
        axes.set_gid(panel["key"])
        axes.set_title(f"{panel['label']}, {panel['unit']}", pad=4)
        for line in found["lines"]:
            points(axes, found, panel, line)
    _frame(first, second, found)
    missed_notes(first, found)
    foot(second, found)
    legend(figure, grid[-1], keys)


def _frame(upper: Axes, lower: Axes, found: Found) -> None:
    """GPUs and tokens/s on logarithmic axes, utilisation from 0; one set of labels for GPUs."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    gpus = found["gpus"]
    edge = (gpus[-1] / gpus[0]) ** 0.04 if len(gpus) > 1 else 1.5
    upper.set_xscale("log", base=2)
    upper.set_xlim(gpus[0] / edge, gpus[-1] * edge)
    upper.set_yscale("log")
    upper.set_ylim(upper.get_ylim()[0] / 1.6, upper.get_ylim()[1])
    low, high = upper.get_ylim()
    upper.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 60 * low else (1.0,)))
    upper.yaxis.set_minor_locator(NullLocator())
    upper.yaxis.set_major_formatter(FuncFormatter(_rate_text))
    upper.tick_params(labelbottom=False)
    shown = [gpus[i] for i in thinned(len(gpus), _TICKS)]
    for axes in (upper, lower):
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(shown, [f"{count:,}" for count in shown])
    upper.grid(visible=True, which="major", axis="both")
    panel = found["panels"][1]
    known = [row[panel["key"]] for row in found["rows"] if row[panel["key"]] is not None]
    lower.set_ylim(0, 1.2 * panel["scale"] * max(known, default=1.0))
    lower.set_xlabel("GPUs")


def _rate_text(amount: float, _: int) -> str:
    """A tick of tokens/s: 500, 20k, 1M."""
    for factor, unit in ((1e6, "M"), (1e3, "k")):
        if amount >= factor:
            return f"{amount / factor:g}{unit}"
    return f"{amount:g}"


def page(sheet: Page, found: Found) -> None:
    """The same for a terminal: a table for each line."""
    heading(sheet, found)
    sheet.line(found["says"], "bold red" if found["fits_count"] == 0 else "bold")
    sheet.line()
    for line in found["lines"]:
        name = f"{line['mode']} scaling" + (f", {line['series']}" if line["series"] else "")
        columns = ["GPUs", ">tokens/s", ">a GPU", ">efficiency", ">MFU", ">used", ""]
        sheet.table(columns, [_cells(row) for row in rows_of(found, line)], name)
    ending(sheet, found)


def _cells(row: Row) -> list[str]:
    """A row of the table."""
    if row["reason"] is not None:
        return [f"{row['gpus']:,}", "-", "-", "-", "-", "-", "refused"]
    used = row["device_used_bytes"]
    shown = [
        f"{row['gpus']:,}",
        "-" if row["tokens_per_s"] is None else f"{row['tokens_per_s']:,.0f}",
        "-" if row["tokens_per_s"] is None else f"{row['tokens_per_s_per_gpu']:,.0f}",
        "-" if row["efficiency"] is None else f"{row['efficiency']:.1%}",
        "-" if row["mfu"] is None else f"{row['mfu']:.1%}",
        "-" if used is None else gib(used),
    ]
    what = state(row)
    return [*shown, row["why"] if what == MISSES else SAID[what]]
