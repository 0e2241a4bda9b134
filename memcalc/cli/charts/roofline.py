"""memcalc chart roofline MODEL: every op of one setup under the roofs of its GPU.

One setup a chart: a list of values or several --setup are refused in one line. Without a GPU there are
no roofs, which is an error too. Checked by: unit/test_chart_roofline.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memcalc.cli.parse import Arguments
from memcalc.cli.variants import case_of

if TYPE_CHECKING:
    from memcalc.planning.cases import Point


def found(arguments: Arguments) -> dict[str, Any]:
    """The chart's object from the command line. Raises ConfigError."""
    from memcalc.planning.charts.roofline import roofline

    return roofline(timed_point(arguments))


def timed_point(arguments: Arguments) -> Point:
    """The one case of a command with its times; reserved bytes are not simulated."""
    from memcalc.planning.cases import point_of

    return point_of(case_of(arguments), allocator=False)
