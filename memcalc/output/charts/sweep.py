"""The sweep chart: memory and speed over one option as lines, over two as maps; and as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from memcalc.output.console import Page


def draw(figure: Figure, found: Mapping[str, Any]) -> None:
    """Draw the chart's object (`planning/charts/sweep.py: sweep`) on an empty figure of the house."""
    if len(found["axes"]) == 1:
        from memcalc.output.charts.sweep_lines import lines

        lines(figure, found)
    else:
        from memcalc.output.charts.sweep_maps import maps

        maps(figure, found)


def page(sheet: Page, found: Mapping[str, Any]) -> None:
    """The same for a terminal: a table over one option, a map in characters over two."""
    from memcalc.output.charts.sweep_text import sweep_page

    sweep_page(sheet, found)
