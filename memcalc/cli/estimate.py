"""memcalc estimate MODEL: memory of one training step, and whether it fits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memcalc.cli.deliver import estimate_dict
from memcalc.cli.feedback import check_options
from memcalc.cli.feedback import run as run_feedback
from memcalc.cli.parse import Arguments
from memcalc.cli.request import Request, request_of
from memcalc.engine.device_side import Device
from memcalc.engine.estimate import estimate, with_advice
from memcalc.engine.results import Estimate
from memcalc.errors import ConfigError

if TYPE_CHECKING:
    from memcalc.engine.plan import Plan
    from memcalc.output.console import Page

DOES_NOT_FIT = 3


def run(arguments: Arguments) -> int:
    """Estimate, write the result, and return 0 when it fits or no GPU was named, else 3."""
    _check_outputs(arguments)
    check_options(arguments)
    request = request_of(arguments)
    if "rlhf" in arguments.options:
        return run_feedback(arguments, request)
    device = request.device(arguments)
    result = estimated(request, device)
    if (path := arguments.text("timeline")) is not None:
        from memcalc.engine.events import step_events
        from memcalc.output.events import write_events

        plan = _plan(request)
        if result.memory.stage is None:
            write_events(step_events(plan), path)
        else:
            from memcalc.engine.parallel.pipeline.pipeline import stage_of
            from memcalc.engine.stage_events import stage_events

            write_events(stage_events(stage_of(plan, result.memory.stage.stage)), path)
    _deliver(arguments, request, result)
    return DOES_NOT_FIT if result.fits is False else 0


def estimated(request: Request, device: Device) -> Estimate:
    """The estimate of a request, with advice when it does not fit."""
    result = estimate(
        request.config,
        request.setup,
        parallel=request.parallel,
        gpu=device,
        kernels=request.kernels,
    )
    if result.fits is False:
        from memcalc.engine.remedy import remedies

        lines = remedies(request.config, request.setup, device, request.kernels, request.parallel)
        result = with_advice(result, lines)
    return result


def _check_outputs(arguments: Arguments) -> None:
    given = [name for name in ("json", "csv", "quiet") if arguments.has(name)]
    if len(given) > 1 and given != ["json", "quiet"]:
        raise ConfigError(f"--{given[1]}: got --{given[0]} too; rule: one form of output")
    path = arguments.text("timeline")
    if path is not None and not path.lower().endswith((".csv", ".json")):
        raise ConfigError(f"--timeline: got {path!r}; rule: a file ending in .csv or .json")


def _plan(request: Request) -> Plan:
    from memcalc.engine.make_plan import plan_of

    return plan_of(request.config, request.setup, request.kernels, request.parallel)


def _deliver(arguments: Arguments, request: Request, result: Estimate) -> None:
    from memcalc.cli.deliver import deliver

    if arguments.has("csv"):
        _csv(arguments, request, result)
        return
    phase = arguments.text("phase") or "train"

    def plain() -> dict[str, Any]:
        found = estimate_dict(request, result)
        if arguments.has("ops"):
            from memcalc.engine.explanation import plain as as_json

            found["ops"] = as_json(_ledger(request).rows)
        return found | _outside(arguments, request, phase, result)

    def page(sheet: Page) -> None:
        from memcalc.output.estimate_text import estimate_page

        estimate_page(sheet, result, _largest(request, result), dict(request.stated))
        if arguments.has("ops"):
            from memcalc.output.explain_text import ledger_tables
            from memcalc.output.time_text import exchanges_table, op_times_table

            op_times_table(sheet, result.time)
            exchanges_table(sheet, result.time)
            ledger_tables(sheet, _ledger(request))
        if outside := _outside(arguments, request, phase, result):
            from memcalc.output.phases_text import phases_table

            phases_table(sheet, outside)

    out = arguments.text("out") or ""
    as_json = arguments.wants_json or out.lower().endswith(".json")
    quiet = arguments.has("quiet")
    line = None
    if quiet and not as_json:
        from memcalc.output.estimate_text import quiet_line

        line = quiet_line(result)
        if outside := _outside(arguments, request, phase, result):
            from memcalc.output.phases_text import quiet_phases

            line = f"{line} {quiet_phases(outside)}"
    deliver(arguments, plain, page, line)
    if not quiet and not as_json:
        _say(result)


def _outside(
    arguments: Arguments, request: Request, phase: str, result: Estimate
) -> dict[str, Any]:
    """JSON keys of the phases outside the step; none with --phase train."""
    from memcalc.cli.phase_options import wanted

    how = wanted(arguments, phase)
    if phase == "train":
        return {}
    from memcalc.engine.phases.program import checkpoint, program

    plan = _plan(request)
    made = program(plan, phase, how)
    memory = result.memory
    room = None if memory.usable_bytes is None else memory.usable_bytes - memory.context_bytes
    found: dict[str, Any] = {
        "program": [one.plain(room) for one in made.phases],
        "program_notes": list(made.notes),
    }
    return found | ({"checkpoint": checkpoint(plan, how)} if phase in ("save", "all") else {})


def _largest(request: Request, result: Estimate) -> list[tuple[str, int, int]]:
    """The largest at the peak, of the stage that needs most where there are stages."""
    plan, place = _plan(request), result.memory.stage
    if place is None:
        from memcalc.engine.events import contributors, step_events

        return contributors(step_events(plan))
    from memcalc.engine.parallel.pipeline.pipeline import stage_of
    from memcalc.engine.stage_events import largest_of_stage

    return largest_of_stage(stage_of(plan, place.stage))


def _ledger(request: Request) -> Any:
    from memcalc.engine.explain import explain

    return explain(request.config, request.setup, request.kernels, request.parallel)


def _say(result: Estimate) -> None:
    from memcalc.output.files import put_notes

    put_notes(result.notes)
    put_notes(result.assumptions, "assumed")


def _csv(arguments: Arguments, request: Request, result: Estimate) -> None:
    from dataclasses import replace

    from memcalc.output.files import put_stdout, write_text

    setup = estimate_dict(request, result)["setup"]
    text = replace(result, setup=setup).to_frame().to_csv(index=False)
    out = arguments.text("out")
    if out is None or out == "-":
        put_stdout(text)
    else:
        write_text(out, text)
    _say(result)
