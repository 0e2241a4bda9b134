"""Time of a training step: micro-batches, exchanges left exposed, bubble, optimizer, offload.

    step = accum (forward + backward + exposed) + bubble + optimizer + exposed once + offload

of the busiest rank; with stages the schedule is simulated (engine/timing/pipeline_time.py). Which
exchanges run beside compute is decided in engine/timing/overlap.py.
Checked by: unit/test_step_time.py, property/test_step_time.py, published/test_throughput.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from memcalc.engine.device_side import Device
from memcalc.engine.parallel.pipeline.actions import Pipe
from memcalc.engine.parallel.pipeline.schedules import SPLIT_BACKWARD, chunks_of
from memcalc.engine.parallel.ranks import chunk_plan
from memcalc.engine.plan import Plan
from memcalc.engine.timing.arith import maximum
from memcalc.engine.timing.exchanges import (
    Exchange,
    between_stages_s,
    exchanges_of,
    sends_in_turn,
)
from memcalc.engine.timing.offload_time import OffloadTime, offload_time
from memcalc.engine.timing.op_time import ComputeTime, compute_time
from memcalc.engine.timing.optimizer_time import Stepped, optimizer_s, stepped_by
from memcalc.engine.timing.overlap import Exposed, exposed, phases_of
from memcalc.engine.timing.pipeline_time import ChunkTime, PipelineTime, pipeline_time
from memcalc.engine.timing.time_estimate import ExchangeTime, OpTime
from memcalc.engine.timing.topology import wires_of
from memcalc.inputs.rates import Rates


class StepTime(NamedTuple):
    """Seconds of a step and what they are made of; see TimeEstimate.

    forward_s ... launch_s add up to compute_s. link_s: the exchanges of one axis alone, of that which
    takes longest.
    """

    step_s: Any
    compute_s: Any
    forward_s: Any
    backward_s: Any
    recompute_s: Any
    launch_s: Any
    exposed_s: Any
    hidden_s: Any
    bubble_s: Any
    optimizer_s: Any
    offload_s: Any
    link_s: Any
    said: tuple[str, ...]
    ops: tuple[OpTime, ...]
    exchanges: tuple[ExchangeTime, ...]


class ChunkStep(NamedTuple):
    """One chunk of the model: its compute, its exchanges, what of them is exposed, and what waiting for
    launches adds forward and backward."""

    plan: Plan
    compute: ComputeTime
    exchanges: tuple[Exchange, ...]
    exposed: Exposed
    offload: OffloadTime
    waits: tuple[Any, Any]

    @property
    def forward_s(self) -> Any:
        own = self.compute.forward.gpu_s + self.waits[0]
        return own + self.exposed.forward_s + self.offload.forward_s

    @property
    def backward_s(self) -> Any:
        own = self.compute.backward.gpu_s + self.compute.recompute.gpu_s + self.waits[1]
        return own + self.exposed.backward_s + self.offload.backward_s

    def parts(self, batches: int) -> tuple[Any, Any, Any, Any]:
        """(forward, backward, recompute, launch) of all micro-batches of a step."""
        compute = self.compute
        return (
            batches * compute.forward.gpu_s,
            batches * compute.backward.gpu_s,
            batches * compute.recompute.gpu_s,
            batches * (self.waits[0] + self.waits[1]),
        )


def step_time(plan: Plan, device: Device, rates: Rates) -> StepTime:
    """Seconds of one step of a plan on a device with these rates."""
    if plan.parallel.pp > 1:
        return _staged(plan, device, rates)
    chunk = chunk_step(plan, device, rates)
    accum = plan.resolved.grad_accum_steps
    apart = chunk.exposed
    exchanged = accum * (apart.forward_s + apart.backward_s) + apart.last_s + apart.step_s
    stepping = optimizer_s(rates, plan, stepped_by([plan]))
    offloaded = chunk.offload.of_step(accum)
    parts = chunk.parts(accum)
    compute = sum(parts)
    return StepTime(
        step_s=compute + exchanged + stepping + offloaded,
        compute_s=compute,
        **dict(zip(("forward_s", "backward_s", "recompute_s", "launch_s"), parts, strict=True)),
        exposed_s=exchanged,
        hidden_s=apart.hidden_s + chunk.offload.hidden_s,
        bubble_s=0.0,
        optimizer_s=stepping,
        offload_s=offloaded,
        link_s=_longest_axis_s(chunk.exchanges, accum),
        said=(*_said(plan, device, rates), *chunk.offload.assumptions),
        ops=chunk.compute.ops,
        exchanges=_exchange_times(chunk.exchanges, accum),
    )


def chunk_step(plan: Plan, device: Device, rates: Rates) -> ChunkStep:
    """One chunk's micro-batch: what it computes and what it exchanges.

    Exchanges inside layers are kernels among others, which Python may launch too slowly; what shards
    exchange runs beside whichever of the two takes longer.
    """
    compute = compute_time(plan, rates)
    found = exchanges_of(plan, device, rates)
    phases = phases_of(plan, compute)
    inside = exposed([one for one in found if _is_inside(one)], phases, rates)
    later = compute.backward.gpu_s + compute.recompute.gpu_s
    launch_s = compute.backward.launch_s + compute.recompute.launch_s
    waits = (
        maximum(compute.forward.launch_s - compute.forward.gpu_s - inside.forward_s, 0.0),
        maximum(launch_s - later - inside.backward_s, 0.0),
    )
    once = compute.backward.once_s + compute.recompute.once_s
    forward = compute.forward.block_s + inside.forward_s + waits[0]
    phases = phases._replace(
        block_forward_s=forward / phases.layers,
        block_backward_s=(later - once + inside.backward_s + waits[1]) / phases.layers,
    )
    around = exposed([one for one in found if not _is_inside(one)], phases, rates)
    both = Exposed(*(one + other for one, other in zip(inside, around, strict=True)))
    offload = offload_time(plan, device, rates, phases, found)
    return ChunkStep(plan, compute, found, both, offload, waits)


def _is_inside(one: Exchange) -> bool:
    """Whether an exchange belongs to a layer's own operators."""
    return not one.place and one.per == "micro-batch" and one.when != "step"


def _said(plan: Plan, device: Device, rates: Rates) -> tuple[str, ...]:
    """What the figures of exchanges rest on that nobody stated; nodes of eight are said of memory too."""
    if plan.parallel.size == 1:
        return ()
    found = wires_of(device, plan.parallel, rates).assumptions
    return tuple(one for one in found if not one.startswith("no cluster named"))


def _longest_axis_s(found: tuple[Exchange, ...], batches: int) -> Any:
    """Seconds of the exchanges of one axis over a step, of the axis that takes longest; sends left out."""
    sums: dict[str, Any] = {}
    for one in found:
        if one.axis != "pp":
            times = batches if one.per == "micro-batch" else 1
            sums[one.axis] = sums.get(one.axis, 0.0) + times * one.seconds
    longest: Any = 0.0
    for seconds in sums.values():
        longest = maximum(longest, seconds)
    return longest


def _exchange_times(found: tuple[Exchange, ...], batches: int) -> tuple[ExchangeTime, ...]:
    """The exchanges of a step, those of one kind, axis and tier together."""
    sums: dict[tuple[str, str, str, int], list[Any]] = {}
    for one in found:
        times = batches if one.per == "micro-batch" else 1
        row = sums.setdefault((one.axis, one.kind, one.tier, one.ranks), [0, 0, 0.0])
        row[0] += times * one.calls
        row[1] += times * one.calls * one.call_bytes
        row[2] += times * one.seconds
    return tuple(ExchangeTime(*key, *row) for key, row in sums.items())


class Staged(NamedTuple):
    """A step of a pipeline: its chunks, what the schedule makes of their seconds, and what comes after.

    held: the chunks of each rank. turns: of sends that nothing runs beside, 0 where sends run beside
    compute. once_s: exchanges after the schedule; stepping_s: the optimizer; both of the slowest rank.
    stepping: what that rank's optimizer steps over.
    """

    pipe: Pipe
    chunks: tuple[ChunkStep, ...]
    held: tuple[tuple[ChunkStep, ...], ...]
    span: PipelineTime
    turns: int
    once_s: Any
    stepping_s: Any
    stepping: Stepped

    @property
    def busiest(self) -> int:
        """The rank whose parts a step's time is made of."""
        return max(range(self.pipe.pp), key=lambda rank: self.span.busy_s[rank])

    @property
    def waited_s(self) -> Any:
        """Seconds in which the busiest rank sends and computes nothing."""
        own = (one for chunk in self.held[self.busiest] for one in chunk.exchanges)
        return self.turns * self.pipe.batches * sum(one.seconds for one in own if one.axis == "pp")

    @property
    def bubble_s(self) -> Any:
        """Seconds in which the busiest rank waits for others."""
        return self.span.span_s - self.span.busy_s[self.busiest] - self.waited_s

    @property
    def step_s(self) -> Any:
        """Seconds of the step."""
        return self.span.span_s + self.once_s + self.stepping_s


def staged(plan: Plan, device: Device, rates: Rates, with_slots: bool = False) -> Staged:
    """The schedule of a plan with stages. with_slots: when every action of every rank runs."""
    schedule = plan.parallel.schedule
    pipe = Pipe(plan.parallel.pp, plan.parallel.vpp, plan.resolved.grad_accum_steps)
    plans = [chunk_plan(plan, number) for number in range(plan.parallel.chunks)]
    known = {(one.kinds, one.ends): one for one in plans}
    priced = {key: chunk_step(one, device, rates) for key, one in known.items()}
    chunks = tuple(priced[one.kinds, one.ends] for one in plans)
    times = [_chunk_time(chunk, schedule in SPLIT_BACKWARD) for chunk in chunks]
    turns = sends_in_turn(plan)
    sends = [max(turns, 1) * between_stages_s(chunk.exchanges) for chunk in chunks[:-1]]
    span = pipeline_time(schedule, pipe, times, sends, turns > 0, with_slots)
    held = tuple(
        tuple(chunks[number] for number in chunks_of(schedule, pipe, rank))
        for rank in range(pipe.pp)
    )
    once = max(sum(c.exposed.last_s + c.exposed.step_s for c in own) for own in held)
    alike = {tuple(map(id, own)): own for own in held}
    stepped = {key: stepped_by([chunk.plan for chunk in own]) for key, own in alike.items()}
    steps = [stepped[tuple(map(id, own))] for own in held]
    stepping_s, rank = max((optimizer_s(rates, plan, one), rank) for rank, one in enumerate(steps))
    return Staged(pipe, chunks, held, span, turns, once, stepping_s, steps[rank])


def _staged(plan: Plan, device: Device, rates: Rates) -> StepTime:
    """A pipeline: the schedule of every rank with the time of each of its chunks."""
    whole = staged(plan, device, rates)
    mine, batches = whole.held[whole.busiest], whole.pipe.batches
    per_chunk = [chunk.parts(batches) for chunk in mine]
    parts = [sum(column) for column in zip(*per_chunk, strict=True)]
    exchanged = batches * sum(c.exposed.forward_s + c.exposed.backward_s for c in mine)
    found = tuple(one for chunk in mine for one in chunk.exchanges)
    return StepTime(
        step_s=whole.step_s,
        compute_s=sum(parts),
        **dict(zip(("forward_s", "backward_s", "recompute_s", "launch_s"), parts, strict=True)),
        exposed_s=exchanged + whole.once_s + whole.waited_s,
        hidden_s=sum(chunk.exposed.hidden_s for chunk in mine),
        bubble_s=whole.bubble_s,
        optimizer_s=whole.stepping_s,
        offload_s=sum(chunk.offload.of_step(batches) for chunk in mine),
        link_s=_longest_axis_s(found, batches),
        said=(*_said(plan, device, rates), *mine[0].offload.assumptions),
        ops=_together([op for chunk in mine for op in chunk.compute.ops]),
        exchanges=_exchange_times(found, batches),
    )


def _together(ops: list[OpTime]) -> tuple[OpTime, ...]:
    """The ops of a rank's chunks, the same op of two chunks in one row with the longer one's bound."""
    rows: dict[tuple[str, str, str], OpTime] = {}
    for op in ops:
        key = (op.op, op.part, op.direction)
        known = rows.get(key)
        if known is not None:
            longer = max(known, op, key=lambda one: one.seconds)
            op = known._replace(
                seconds=known.seconds + op.seconds,
                bound=longer.bound,
                kernels=known.kernels + op.kernels,
                flops=known.flops + op.flops,
                bytes=known.bytes + op.bytes,
                kernel_flops=known.kernel_flops + op.kernel_flops,
                dtype=longer.dtype or op.dtype or known.dtype,
            )
        rows[key] = op
    return tuple(rows.values())


def _chunk_time(chunk: ChunkStep, split: bool) -> ChunkTime:
    if not split:
        return ChunkTime(chunk.forward_s, chunk.backward_s)
    weights = chunk.compute.wgrad_s
    return ChunkTime(chunk.forward_s, chunk.backward_s, chunk.backward_s - weights, weights)
