"""The report's JSON object: everything its page shows, of one setup and of those beside it.

The page is drawn from this object alone (output/report), so what it says is what `--json` says. The
setup described is the first that can be priced; rows of all of them make the comparison, and any rows of
planning/rows.py can stand there. Checked by: cli/test_report.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from memcalc.engine.estimate import with_advice
from memcalc.engine.events import contributors, step_events
from memcalc.engine.explain import explain
from memcalc.engine.make_plan import plan_of
from memcalc.engine.parallel.pipeline.pipeline import stage_of
from memcalc.engine.results import SCHEMA, Estimate
from memcalc.engine.stage_events import largest_of_stage
from memcalc.engine.words import layout_line, setup_words
from memcalc.inputs.models import model_hash
from memcalc.planning.cases import Case, Point
from memcalc.planning.charts.compare import Wish, compare
from memcalc.planning.charts.head import (
    head,
    label_of,
    model_on_gpu,
    setup_line,
    source_line,
)
from memcalc.planning.compare_columns import COLUMNS, SPEED
from memcalc.planning.ledger_rows import ledger_of
from memcalc.planning.report_charts import charts_of
from memcalc.planning.report_inputs import Stated, inputs_of
from memcalc.planning.report_sources import sources_of
from memcalc.planning.report_words import verdict_of


class Asked(NamedTuple):
    """What was asked for. command: what makes the same page again. stated: the options of the setup
    described. price: USD per GPU-hour."""

    command: str
    stated: Stated
    price: float | None = None


def report_of(
    point: Point, asked: Asked, rows: Sequence[Mapping[str, Any]] = (), points: Sequence[Point] = ()
) -> dict[str, Any]:
    """The object of a report. point: the setup it is about, with its estimate.

    rows: the setups it is compared with, its own among them, as planning/rows.py has them; fewer than
    two: no comparison. points: estimates that stand for these rows, for title and source line.
    """
    from memcalc import __version__

    case, result = point.case, point.result
    assert isinstance(case, Case) and result is not None
    result = _advised(case, result)
    return {
        "schema": SCHEMA,
        "memcalc": __version__,
        "report": "training",
        "title": model_on_gpu([point]),
        "subtitle": ", ".join(setup_words(result.setup)),
        "layout": layout_line(result.setup),
        "label": label_of(point),
        "source": source_line([result]),
        "command": asked.command,
        "describes": case.command,
        "verdict": verdict_of(case, result),
        "inputs": inputs_of(result, asked.stated),
        "estimate": _estimate(case, result),
        "largest": _largest(case, result),
        "charts": charts_of(point._replace(result=result)),
        "comparison": _comparison(rows, points, asked.price),
        "ledger": _ledger(case, result),
        "sources": sources_of(case, result),
    }


def _advised(case: Case, result: Estimate) -> Estimate:
    """With what would make it fit, as `estimate` has it."""
    if result.fits is not False:
        return result
    from memcalc.engine.remedy import remedies

    lines = remedies(case.config, case.setup, case.device, case.kernels, case.parallel)
    return with_advice(result, lines)


def _estimate(case: Case, result: Estimate) -> dict[str, Any]:
    """What `estimate --json` prints of the setup."""
    plain = result.to_dict()
    hashes = {"model": model_hash(case.model), **plain["setup"]["profile_hashes"]}
    plain["setup"] = {"model": case.model, **plain["setup"], "profile_hashes": hashes}
    return plain


def _largest(case: Case, result: Estimate) -> list[dict[str, Any]]:
    """[{"what", "tensors", "bytes"}] at the peak, of the stage that needs most where there are stages."""
    plan, place = plan_of(case.config, case.setup, case.kernels, case.parallel), result.memory.stage
    if place is None:
        found = contributors(step_events(plan))
    else:
        found = largest_of_stage(stage_of(plan, place.stage))
    return [{"what": what, "tensors": count, "bytes": size} for what, count, size in found]


def _ledger(case: Case, result: Estimate) -> dict[str, Any]:
    found = explain(case.config, case.setup, case.kernels, case.parallel)
    return ledger_of(found, result.time.ops)


def _comparison(
    rows: Sequence[Mapping[str, Any]], points: Sequence[Point], price: float | None
) -> dict[str, Any] | None:
    """The object of a comparison; None for one setup."""
    if len(rows) < 2:
        return None
    options = list(dict.fromkeys(name for row in rows for name in row["labels"]))
    title = f"{model_on_gpu(points)}: what fits and how fast"
    about = head("compare", title, setup_line(points), points)
    made = compare(about, options, [dict(row) for row in rows], Wish(price=price))
    beside = [SPEED, COLUMNS["cost"]] if price is not None else [SPEED]
    known = [one for one in beside if any(row[one.key] is not None for row in rows)]
    return {**made, "panels": [column._asdict() for column in known]}
