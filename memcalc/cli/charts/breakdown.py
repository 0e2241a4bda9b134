"""memcalc chart breakdown MODEL: where the memory goes, for one setup, its stages, or several setups.

Every option of a setup may be a list, and --setup may be repeated; each combination is a bar. One setup
with pipeline stages has a bar for each stage. What the bars hold is in planning/charts/breakdown.py.
Checked by: cli/test_chart.py.
"""

from __future__ import annotations

from typing import Any

from memcalc.cli.charts.priced import priced
from memcalc.cli.parse import Arguments

__all__ = ["found"]


def found(arguments: Arguments) -> dict[str, Any]:
    """The breakdown of the command line's cases, with options that do not go together as refusals.

    Raises ConfigError for bad values, where every combination is refused, and for more setups than a
    picture holds, which are not computed first.
    """
    from memcalc.planning.charts.breakdown import MOST, breakdown

    return breakdown(priced(arguments, MOST))
