"""The timeline chart's object: bytes of tensors alive over one step by category, phases, and the peak.

A point is an allocation: every high there is. Thousands of them are reduced to what a picture can show;
the peak, and the highest of every stretch of a phase, are always among them. With pipeline stages it is
a rank of the stage that needs most. Beside it, where a record is given, what its run measured.
Checked by: unit/test_charts_timeline.py, harness/test_verify.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from memcalc.engine.events import Event, step_events
from memcalc.engine.make_plan import plan_of
from memcalc.engine.memory import BUFFER_OPS, step_memory
from memcalc.engine.parallel.pipeline.pipeline import stage_of
from memcalc.engine.plan import Plan
from memcalc.engine.results import Estimate
from memcalc.engine.series import Span, spans_of, thinned
from memcalc.engine.stage_events import stage_events
from memcalc.planning.cases import Case, Point
from memcalc.planning.charts.head import head, model_on_gpu, need_one, setup_line

#: Points of a picture; more are reduced.
MOST: Final = 360
#: Bottom first: what stays the whole step, then what comes and goes.
_STACKED: Final = (
    "parameters", "optimizer", "buffers", "gathered", "gradients", "activations", "loss", "temporary",
)  # fmt: skip
Record = Mapping[str, Any]


class Instant(NamedTuple):
    """An allocation of a step: its event, and what is alive after it."""

    event: Event
    parts: dict[str, int]


def timeline(point: Point) -> dict[str, Any]:
    """The JSON object of one setup. Raises the ConfigError of a refused one.

    rows: one a point kept: at (which allocation, from 0), phase, layer (-1 outside the blocks), op,
    live_bytes, parts (category -> bytes, their sum). phases: stretches [begin, end) of allocations. peak:
    the point with the most, which is the estimate's requested peak. usable_bytes and device_used_bytes:
    of the GPU; measured: None.
    """
    result = need_one([point])[0]
    assert isinstance(point.case, Case)
    case = point.case
    plan = plan_of(case.config, case.setup, case.kernels, case.parallel)
    subtitle = "; ".join([setup_line([point]), *_shown(plan, result)])
    title = f"{model_on_gpu([point])}: memory over one training step"
    memory = result.memory.to_dict()
    return {
        **head("timeline", title, subtitle, [point]),
        **series_of(events_of(plan, result), memory),
        "command": case.command,
        "fits": result.fits,
        "verdict": result.verdict,
        "measured": None,
        "notes": list(result.notes),
    }


def events_of(plan: Plan, result: Estimate) -> list[Event]:
    """The events of a step; of the stage that needs most where there are stages."""
    place = result.memory.stage
    return step_events(plan) if place is None else stage_events(stage_of(plan, place.stage))


def _shown(plan: Plan, result: Estimate) -> list[str]:
    """Which stage, and which micro-batches, where not all are drawn."""
    place, accum = result.memory.stage, plan.resolved.grad_accum_steps
    if place is not None:
        return [f"stage {place.stage} of {plan.parallel.pp}, which needs most"]
    drawn = len(plan.strategy.micro_batches(plan))
    return [f"{drawn} of {accum} micro-batches, the others repeat"] if accum > drawn else []


def series_of(
    events: Sequence[Event], memory: Mapping[str, Any], repeats: int = 0
) -> dict[str, Any]:
    """Rows, phases and peak of a step's events.

    memory: the estimate's, as JSON. repeats: how often the last micro-batch comes again, as in a
    measured step; a picture of an estimate alone shows it once.
    """
    found = every_instant(events, repeats)
    levels = [instant.event.live_bytes for instant in found]
    names = [instant.event.phase for instant in found]
    kept = thinned(levels, names, [instant.event.layer for instant in found], MOST)
    used = {name for instant in found for name, size in instant.parts.items() if size}
    categories = [name for name in _STACKED if name in used]
    top = _peak_of(found, memory["peak_at"])
    rows = [
        _row(at, found[at], categories)
        for at in sorted({*kept, top})
    ]  # fmt: skip
    return {
        "categories": categories,
        "allocations": len(found),
        "rows": rows,
        "phases": [span._asdict() for span in spans_of(names)],
        "peak": {
            "at": top, "live_bytes": levels[top], "where": memory["peak_at"],
            "primitive": memory["peak_primitive"],
        },
        "usable_bytes": memory["usable_bytes"],
        "device_used_bytes": memory["device_used_bytes"],
    }  # fmt: skip


def every_instant(events: Sequence[Event], repeats: int = 0) -> list[Instant]:
    """All points of a step, before any is left out; its last micro-batch `repeats` times more."""
    return _repeated(list(_instants(events)), repeats)


def _instants(events: Sequence[Event]) -> Iterator[Instant]:
    """The allocations, from what is there before the step on, and last what the step leaves.

    What makes tables before the first block is left out, for a run makes them in more steps.
    """
    alive: Counter[str] = Counter()
    in_blocks = False
    begun = max(at for at, event in enumerate(events) if event.phase == "start")
    for at, event in enumerate(events):
        alive[event.category] += event.allocated_bytes
        in_blocks = event.layer >= 0 or (in_blocks and event.phase != "forward")
        last = at == len(events) - 1
        if at < begun or (event.allocated_bytes <= 0 and not last):
            continue
        if at == begun or in_blocks or last or event.op not in BUFFER_OPS:
            yield Instant(event, dict(alive))


def _repeated(found: list[Instant], repeats: int) -> list[Instant]:
    """The last micro-batch again and again."""
    if repeats <= 0:
        return found
    phases = [instant.event.phase for instant in found]
    begins = [
        at for at in range(1, len(found)) if phases[at] == "forward" and phases[at - 1] != "forward"
    ]
    end = phases.index("optimizer") if "optimizer" in phases else len(phases)
    return [*found[:end], *found[begins[-1] : end] * repeats, *found[end:]]


def _peak_of(found: Sequence[Instant], where: str) -> int:
    """The allocation that the estimate names, among those with the most bytes."""
    most = max(instant.event.live_bytes for instant in found)
    tops = [at for at, instant in enumerate(found) if instant.event.live_bytes == most]
    return next((at for at in tops if _name(found[at].event) == where), tops[0])


def _name(event: Event) -> str:
    place = event.op if event.layer < 0 else f"layers.{event.layer}/{event.op}"
    return f"{event.phase}/{place}"


def _row(at: int, instant: Instant, categories: Sequence[str]) -> dict[str, Any]:
    event = instant.event
    return {
        "at": at, "phase": event.phase, "layer": event.layer, "op": event.op,
        "live_bytes": event.live_bytes,
        "parts": {name: instant.parts.get(name, 0) for name in categories},
    }  # fmt: skip


def timeline_beside(plan: Plan, record: Record) -> dict[str, Any]:
    """The object of a measured run: its plan's step, and beside it what the record says.

    The run was watched by a tracker, under which PyTorch sums gradients into new memory, and so is the
    step drawn here. measured: at, live_bytes and phases of the points the record keeps (none in records
    of older versions), peak_bytes and peak_at, phase_peaks (phase -> bytes).
    """
    plan = plan._replace(kernels=plan.kernels._replace(watched=True))
    told, memory = step_memory(plan), record["memory"]
    repeats = plan.resolved.grad_accum_steps - len(plan.strategy.micro_batches(plan))
    predicted = {
        "peak_at": told.peak.name, "peak_primitive": told.peak.primitive,
        "usable_bytes": record["device"].get("total_bytes"), "device_used_bytes": None,
    }  # fmt: skip
    kept = record.get("timeline") or {}
    measured = {
        "at": kept.get("at", []),
        "live_bytes": kept.get("live_bytes", []),
        "allocations": kept.get("allocations"),
        "phases": [Span(*span)._asdict() for span in kept.get("spans", [])],
        "phase_peaks": memory.get("phases") or {},
        "peak_bytes": memory.get("peak_requested_bytes"),
        "peak_at": memory.get("peak_at"),
        "peak_allocated_bytes": memory.get("peak_allocated_bytes"),
    }
    return {
        **head("timeline", _measured_title(record), _measured_setup(record)),
        "source": _measured_source(record),
        **series_of(step_events(plan), predicted, repeats),
        "fits": None,
        "verdict": None,
        "measured": measured,
        "notes": [],
    }


def _measured_title(record: Record) -> str:
    model, device = record["setup"]["model"], record["device"]["name"]
    return (
        f"{model['name']}, {model['num_hidden_layers']} layers, on {device}: memory over one step"
    )


def _measured_setup(record: Record) -> str:
    training, resolved = record["setup"]["training"], record["setup"]["resolved"]
    accum = int(resolved["grad_accum_steps"])
    more = f"grad-accum {accum}, " if accum > 1 else ""
    return (
        f"seq {resolved['seq_len']}, micro-batch {resolved['micro_batch_size']}, {more}"
        f"{training['precision']}, {training['optimizer']}, recompute {training['recompute']}"
    )


def _measured_source(record: Record) -> str:
    device = record["device"]
    return (
        f"memcalc {record['memcalc']}; measured {record['date'][:10]} on {device['name']}, torch "
        f"{device['torch']}; bytes of tensors under a tracker, without scratch inside kernels"
    )
