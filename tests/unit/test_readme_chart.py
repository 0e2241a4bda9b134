"""The bars of the README's chart are the estimates' bytes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from memcalc.units import GIB

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "readme_chart.py"


def test_plotted_bars_are_the_breakdown() -> None:
    spec = importlib.util.spec_from_file_location("readme_chart", SCRIPT)
    assert spec and spec.loader
    chart = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(chart)
    found = chart.results()
    axes = chart.draw(found).axes[0]
    assert len(axes.containers) == len(chart.COLOURS)
    for bars, name in zip(axes.containers, chart.COLOURS, strict=True):
        for bar, result in zip(bars, found.values(), strict=True):
            assert round(bar.get_width() * GIB) == chart.categories(result)[name]
    for row, result in enumerate(found.values()):
        end = max(b.get_x() + b.get_width() for c in axes.containers for b in [c[row]])
        assert abs(end * GIB - result.memory.peak_allocated_bytes) < 64
