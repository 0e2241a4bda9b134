"""The charts of a report: each kind's object with a sentence of what it shows.

A kind that has nothing to show of a setup (a roofline without a GPU, the schedule of one stage) is left
out. Checked by: cli/test_report.py.
"""

from __future__ import annotations

from typing import Any

from memcalc.planning.cases import Case, Point
from memcalc.planning.charts.breakdown import breakdown
from memcalc.planning.charts.pipeline import pipeline
from memcalc.planning.charts.roofline import roofline
from memcalc.planning.charts.timeline import timeline
from memcalc.planning.report_words import breakdown_said, timeline_said


def charts_of(point: Point) -> dict[str, dict[str, Any]]:
    """Kind -> {"finding", "object"}, in the order of the page."""
    case, result = point.case, point.result
    assert isinstance(case, Case) and result is not None
    alone = point._replace(case=case._replace(labels={}))
    found = {
        "breakdown": _chart(breakdown([alone]), breakdown_said(result)),
        "timeline": _chart(timeline(alone), timeline_said(result)),
    }
    if result.time.step_s is None:
        return found
    if result.memory.stage is not None:
        found["pipeline"] = _chart(pipeline(alone))
    return {**found, "roofline": _chart(roofline(alone))}


def _chart(made: dict[str, Any], said: str = "") -> dict[str, Any]:
    """What it shows: its own words, where it has them."""
    return {"finding": said or made["says"], "object": made}
