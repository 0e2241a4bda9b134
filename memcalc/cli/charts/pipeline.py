"""memcalc chart pipeline MODEL --pp N: the schedule of one setup's stages, and what each of them holds.

One setup a chart: a list of values is refused in one line. A setup without stages, or without a GPU,
is an error that says what to add. Checked by: unit/test_chart_pipeline.py.
"""

from __future__ import annotations

from typing import Any

from memcalc.cli.parse import Arguments
from memcalc.cli.variants import case_of


def found(arguments: Arguments) -> dict[str, Any]:
    """The chart's object from the command line, reserved bytes simulated stage by stage.

    Raises ConfigError.
    """
    from memcalc.planning.cases import point_of
    from memcalc.planning.charts.pipeline import check_stages, pipeline

    case = case_of(arguments)
    # before anything is priced: the estimate of a setup without stages would be in vain
    check_stages(case)
    point = point_of(case)
    return pipeline(point)
