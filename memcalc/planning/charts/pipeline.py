"""The pipeline chart's object: when every stage computes what, how long it waits, and what it holds.

Times are the step's own (engine/timing/step_time.py: staged), action by action; the bubble is what the
rank that computes longest waits for others, as in the estimate. Rows are actions; `stages` says of each
rank how long it is busy and what it needs at its peak, with the micro-batches in flight.
Checked by: unit/test_chart_pipeline.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memcalc.engine.make_plan import plan_of
from memcalc.engine.parallel.pipeline.schedules import SPLIT_BACKWARD
from memcalc.engine.results import Estimate, MemoryEstimate
from memcalc.engine.timing.pipeline_time import Slot
from memcalc.engine.timing.step_time import Staged, staged
from memcalc.errors import ConfigError
from memcalc.inputs.choose_rates import choose_rates
from memcalc.inputs.rates import sustained
from memcalc.planning.cases import Case, Point
from memcalc.planning.charts.head import head, model_on_gpu, need_one, setup_line
from memcalc.units import gib

#: Kind of an action -> what it is called.
KINDS = {"F": "forward", "B": "backward", "I": "gradients of inputs", "W": "gradients of weights"}
#: What a stage's bytes are made of: key of a row -> categories of the estimate's breakdown.
HELD = {
    "states_bytes": ("parameters", "gathered", "gradients", "optimizer"),
    "activations_bytes": ("activations",),
}


def pipeline(point: Point) -> dict[str, Any]:
    """The JSON object of a point's schedule; seconds from the first start.

    Raises ConfigError for a refused point, one without stages, and one without a GPU.
    """
    (result,) = need_one([point])
    case = point.case
    assert isinstance(case, Case)
    check_stages(case)
    whole = _staged(case)
    schedule, time = case.parallel.schedule, result.time
    assert time.step_s is not None
    found = {
        **head(
            "pipeline", f"{model_on_gpu([point])}: {_schedule(whole, schedule)}",
            setup_line([point]), [point],
        ),
        "command": case.command,
        "schedule": schedule,
        "pp": whole.pipe.pp,
        "vpp": whole.pipe.vpp,
        "micro_batches": whole.pipe.batches,
        "splits_backward": schedule in SPLIT_BACKWARD,
        "span_s": float(whole.span.span_s),
        "after_s": {"exchanges": float(whole.once_s), "optimizer": float(whole.stepping_s)},
        "step_s": float(time.step_s),
        "busiest": whole.busiest,
        "bubble_s": float(time.bubble_s or 0.0),
        "sends_s": float(whole.waited_s),
        "bubble_share": float(time.bubble_s or 0.0) / time.step_s,
        "usable_bytes": result.memory.usable_bytes,
        "fits": result.fits,
        "stages": [_stage(one, whole) for one in result.stages],
        "rows": [_row(slot) for slot in whole.span.slots],
    }  # fmt: skip
    return {**found, "says": _says(found, result)}


def check_stages(case: Case) -> None:
    """Raise ConfigError for a case that has no pipeline to draw, or no times."""
    if case.parallel.pp < 2:
        layers = case.config.num_hidden_layers
        near = next((pp for pp in (4, 2, 3, 5, 7) if pp <= layers and layers % pp == 0), 2)
        raise ConfigError(
            "chart pipeline: got one stage; rule: --pp of 2 and more, with micro-batches to fill it; "
            f"nearest valid: --gpus {near} --pp {near} --micro-batch 1 --grad-accum {4 * near}"
        )
    if case.device.gpu is None:
        raise ConfigError(
            "chart pipeline: got no GPU; rule: its rates give the schedule its seconds; nearest valid: "
            "--gpu h100-80gb, or --cluster dgx-h100"
        )


def _staged(case: Case) -> Staged:
    gpu = case.device.gpu
    assert gpu is not None
    rates = sustained(choose_rates(gpu, case.device.calibration)[0])
    plan = plan_of(case.config, case.setup, case.kernels, case.parallel)
    return staged(plan, case.device, rates, with_slots=True)


def _schedule(whole: Staged, name: str) -> str:
    pp, vpp = whole.pipe.pp, whole.pipe.vpp
    more = f" of {vpp} chunks" if vpp > 1 else ""
    return f"{pp} stages{more}, {name}"


def _row(slot: Slot) -> dict[str, Any]:
    """One action of one rank; micro-batches count from 0, as in the estimate."""
    kind, chunk, batch = slot.action
    return {
        "stage": slot.rank,
        "kind": KINDS[kind],
        "chunk": chunk,
        "micro_batch": batch,
        "start_s": float(slot.start_s),
        "end_s": float(slot.end_s),
    }


def _stage(memory: MemoryEstimate, whole: Staged) -> dict[str, Any]:
    """One rank: its layers, seconds and bytes; rest_bytes is what is neither state nor activation."""
    place = memory.stage
    assert place is not None
    busy = float(whole.span.busy_s[place.stage])
    breakdown = memory.breakdown._asdict()
    parts = {key: sum(breakdown[name] for name in names) for key, names in HELD.items()}
    used = memory.device_used_bytes
    needed = memory.peak_allocated_bytes if used is None else used
    return {
        "stage": place.stage,
        "layers": [list(chunk) for chunk in place.layers],
        "parameters": place.parameters,
        "busy_s": busy,
        "waits_s": float(whole.span.span_s) - busy,
        "in_flight": list(place.in_flight),
        "peak_at": memory.peak_at,
        "peak_micro_batch": place.peak_micro_batch,
        **parts,
        "rest_bytes": needed - sum(parts.values()),
        "peak_allocated_bytes": memory.peak_allocated_bytes,
        "device_used_bytes": used,
        "headroom_bytes": memory.headroom_bytes,
    }


def _says(found: Mapping[str, Any], result: Estimate) -> str:
    """The bubble, the micro-batches, and the stage that needs most."""
    count = found["micro_batches"]
    said = (
        f"bubble {100 * found['bubble_share']:.1f} % of a step of {seconds_text(found['step_s'])}, "
        f"{count} micro-batch{'es' * (count != 1)}"
    )
    return f"{said}; {_most(found['stages'], result)}"


def _most(stages: Sequence[Mapping[str, Any]], result: Estimate) -> str:
    worst = max(stages, key=lambda one: one["device_used_bytes"] or one["peak_allocated_bytes"])
    need = gib(worst["device_used_bytes"] or worst["peak_allocated_bytes"])
    said = f"stage {worst['stage']} needs most, {need}"
    if result.memory.usable_bytes is None:
        return said
    return f"{said} of {gib(result.memory.usable_bytes)} usable" + (
        "" if result.fits else ": does not fit"
    )


def seconds_text(seconds: float) -> str:
    """`4.66 s`, `91.8 ms`."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"
