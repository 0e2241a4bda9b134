"""The accuracy chart as text: scores of each quantity, the histogram of its errors, the worst of them.

Errors are predicted over measured less 1; of a step time that of its speed. Bars are figures that are
scored and of no source that a constant was fitted to. Checked by: unit/test_chart_accuracy.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memcalc.output.charts.text import bars, ending, heading, shortened
from memcalc.output.console import Page

Found = Mapping[str, Any]
_SETUP = 34


def page(sheet: Page, found: Found) -> None:
    """Scores, then for each quantity its errors and the figures furthest out."""
    heading(sheet, found)
    if not found["panels"]:
        sheet.line(found["says"])
        ending(sheet, found)
        return
    columns = ("What", ">n", ">median", ">mean", ">p90", ">bias", ">worst")
    rows = []
    for panel in found["panels"]:
        rows.append(_scores(panel["label"], panel["n"], panel["score"]))
        if panel["fitted_n"]:
            rows.append(_scores("  sources fitted to", panel["fitted_n"], panel["fitted_score"]))
    sheet.table(columns, rows)
    for panel in found["panels"]:
        if panel["n"]:
            _errors(sheet, found, panel)
    if found["fitted_sources"]:
        sheet.line(f"fitted to, scored apart: {', '.join(found['fitted_sources'])}")
    ending(sheet, found)


def _scores(name: str, count: int, score: Mapping[str, Any] | None) -> list[str]:
    if not count or score is None:
        return [name, str(count), *["-"] * 5]
    figures = [f"{score[key]:.1f} %" for key in ("median_pct", "mae_pct", "p90_pct")]
    return [
        name,
        str(count),
        *figures,
        f"{score['bias_pct']:+.1f} %",
        f"{score['worst_pct']:.0f} %",
    ]


def _errors(sheet: Page, found: Found, panel: Mapping[str, Any]) -> None:
    """The histogram, bins of nothing at either end left out, and the worst."""
    edges, shown = found["edges_pct"], panel["histogram"]
    rows = [(f"below {edges[0]} %", shown["below"])]
    rows += [
        (f"{low:+d} to {high:+d} %", count)
        for low, high, count in zip(edges[:-1], edges[1:], shown["counts"], strict=True)
    ]
    rows.append((f"above {edges[-1]:+d} %", shown["above"]))
    filled = [place for place, (_, count) in enumerate(rows) if count]
    kept = rows[filled[0] : filled[-1] + 1]
    sheet.line(f"Errors of {panel['label']}, {panel['n']} figures", "bold")
    bars(sheet, [(label, float(count), str(count)) for label, count in kept])
    sheet.line()
    worst = [
        (f"{one['error_pct']:+.1f} %", shortened(one["setup"], _SETUP), one["gpu"] or "-",
         shortened(one["source"], 24))
        for one in panel["worst"]
    ]  # fmt: skip
    sheet.table((">furthest", "setup", "gpu", "source"), worst)
