"""Memory of one rank: model states plus the timeline, phase by phase, with what is alive at the peak.

Live bytes of a phase are the bytes that were there before the step (parameters, optimizer states,
token ids, gradients that already exist) plus the timeline of a micro-batch, that which peaks highest
(`Plan.peak_batches`). The optimizer's step stands on all gradients.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from memcalc.engine.encoders import input_tokens
from memcalc.engine.optimizer import PARTIAL_GRADIENTS
from memcalc.engine.parallel.strategy import Batch
from memcalc.engine.plan import Plan
from memcalc.engine.sizes import Size
from memcalc.engine.states import States, all_leaves, multiplicity, states
from memcalc.engine.structure import Run, Segment, Structure
from memcalc.engine.tensors import Tape, Tensor
from memcalc.engine.timeline import Instant, Measured, measure, size_values

CATEGORIES = (
    "parameters", "gathered", "gradients", "optimizer", "activations", "loss", "temporary", "buffers",
)  # fmt: skip
#: Ledger operators whose tensors are tables and masks, and those of head and loss.
BUFFER_OPS = frozenset(
    {"rope_tables", "relative_table", "causal_mask", "alibi", "position_ids", "reduce_bucket"}
)
_LOSS_OPS = frozenset({"lm_head", "loss"})
#: Operators of injectors: parameters gathered from other ranks, and buffers of collectives.
GATHERED_OPS = frozenset({"unshard", "reshard"})
COLLECTIVE_OPS = frozenset({"all_gather", "reduce_scatter"})


class StepMemory(NamedTuple):
    """Requested bytes of one training step from the second on.

    phases: peak of each; instants: where each peaks; breakdown: categories at the step's peak, which
    sum to it.
    """

    states: States
    peak_bytes: int
    peak: Instant
    phases: dict[str, int]
    instants: dict[str, Instant]
    breakdown: dict[str, int]
    saved_bytes: int
    saved_per_layer_bytes: int
    input_bytes: int


class OptimizerTrace(NamedTuple):
    """The optimizer step's own events: i >= 0 allocates unique size size_index[i], ~i frees."""

    events: tuple[int, ...]
    unique_sizes: tuple[Size, ...]
    size_index: tuple[int, ...]
    names: tuple[str, ...]
    ops: tuple[str, ...]

    def sizes(self, values: Mapping[str, int]) -> list[int]:
        """The bytes of each allocation."""
        unique = [size.value(values) for size in self.unique_sizes]
        return [unique[i] for i in self.size_index]


def optimizer_trace(structure: Structure, runs: tuple[Run, ...], plan: Plan) -> OptimizerTrace:
    """The cached allocations of one optimizer step over what this rank steps."""
    shapes = tuple(sorted(plan.values.items())) if plan.optimizer.name == "muon" else ()
    key = (tuple(run.count for run in runs), plan.optimizer, plan.strategy, shapes)
    known = structure.cache.get(key)
    if not isinstance(known, OptimizerTrace):
        known = structure.cache[key] = trace_of_optimizer(all_leaves(structure, runs), plan)
    return known


def trace_of_optimizer(leaves: list[Tensor], plan: Plan) -> OptimizerTrace:
    """The allocations of one optimizer step over these parameters, in the order of registration."""
    tape = Tape(values=dict(plan.values))
    partial = plan.resolved.setup.set_to_none  # else they were summed as they came
    plan.strategy.step(tape, leaves, plan.optimizer, partial)
    unique = list(dict.fromkeys(tape.sizes))
    index = {size: i for i, size in enumerate(unique)}
    return OptimizerTrace(
        tuple(tape.events),
        tuple(unique),
        tuple(index[size] for size in tape.sizes),
        tuple(tape.names),
        tuple(tape.labels[i].op for i in tape.labels_of),
    )


def input_bytes(plan: Plan) -> int:
    """A rank's token ids of one micro-batch, and labels where they are a tensor of their own (int64)."""
    return 8 * input_tokens(plan.config, plan.values, plan.resolved.setup.separate_labels)


def step_memory(plan: Plan) -> StepMemory:
    """Requested bytes of the step: phases, peak, its instant and breakdown."""
    structure, runs = plan.structure(*plan.peak_batch)
    held = states(structure, runs, plan.optimizer, plan.values, plan.strategy)
    fixed = plan.strategy.fixed_bytes(plan)
    inputs = input_bytes(plan) + plan.table_bytes
    static = held.parameter_bytes + held.optimizer_bytes + held.master_bytes + inputs
    static += sum(fixed.values())
    batches = [_BatchPeaks.of(plan, batch, held) for batch in plan.peak_batches]
    highest = {
        name: max(batches, key=lambda batch: batch.live_bytes(name))
        for name in batches[0].measured.phases
    }
    phases = {name: static + batch.live_bytes(name) for name, batch in highest.items()}
    instants = {name: batch.measured.phases[name] for name, batch in highest.items()}
    step = optimizer_peak(optimizer_trace(structure, runs, plan), plan)
    instants["optimizer"] = step
    phases["optimizer"] = static + held.gradient_bytes + step.live_bytes
    winner = max(phases, key=lambda name: phases[name])
    breakdown = _static_breakdown(held, inputs)
    for name, size in fixed.items():
        breakdown[name] += size
    if winner == "optimizer":
        breakdown["gradients"] += held.gradient_bytes
        breakdown["temporary"] += step.live_bytes
    else:
        breakdown["gradients"] += highest[winner].existing_bytes
        for name, size in highest[winner].alive(instants[winner], plan.values).items():
            breakdown[name] += size
    saved = batches[0].measured.saved_bytes - _gathered_bytes(structure, runs, plan.values)
    return StepMemory(
        states=held,
        peak_bytes=phases[winner],
        peak=instants[winner],
        phases=phases,
        instants=instants,
        breakdown=breakdown,
        saved_bytes=saved,
        saved_per_layer_bytes=saved_per_layer(structure, runs, plan.values),
        input_bytes=inputs,
    )


class _BatchPeaks(NamedTuple):
    """One micro-batch: its peaks, and gradients that exist before it."""

    structure: Structure
    runs: tuple[Run, ...]
    measured: Measured
    existing_bytes: int

    @classmethod
    def of(cls, plan: Plan, batch: Batch, held: States) -> _BatchPeaks:
        """Measure a micro-batch of a plan."""
        structure, runs = plan.structure(*batch)
        exist = batch.has_gradients or plan.strategy.persistent_gradients
        existing = held.gradient_bytes if exist else 0
        existing += plan.strategy.unreduced_bytes(plan) if batch.has_gradients else 0
        return cls(structure, runs, measure(structure, runs, plan.values), existing)

    def live_bytes(self, phase: str) -> int:
        """Highest of a phase, over parameters and optimizer states."""
        return self.existing_bytes + self.measured.phases[phase].live_bytes

    def alive(self, at: Instant, values: Mapping[str, int]) -> dict[str, int]:
        """What is alive at an instant, by category."""
        return alive_by_category(self.structure, self.runs, values, (at.event, at.copies))


def _static_breakdown(held: States, inputs: int) -> dict[str, int]:
    breakdown = dict.fromkeys(CATEGORIES, 0)
    breakdown["parameters"] = held.parameter_bytes
    breakdown["optimizer"] = held.optimizer_bytes + held.master_bytes
    breakdown["buffers"] = inputs
    return breakdown


def optimizer_peak(trace: OptimizerTrace, plan: Plan) -> Instant:
    """The most bytes the optimizer's own tensors take, over gradients and states."""
    sizes = trace.sizes(plan.values)
    live = best = 0
    where = -1
    for event in trace.events:
        if event >= 0:
            live += sizes[event]
            if live > best and trace.ops[event] != PARTIAL_GRADIENTS:  # before the phase begins
                best, where = live, event
        else:
            live -= sizes[~event]
    name, op = ("", "optimizer") if where < 0 else (trace.names[where], trace.ops[where])
    return Instant(best, "optimizer", op, -1, name, False, where)


def category(structure: Structure, storage: int) -> str:
    """The breakdown's category of a traced storage."""
    label = structure.labels[structure.labels_of[storage]]
    is_sum = storage in structure.earlier and label.op not in GATHERED_OPS
    if storage in structure.gradients or is_sum:
        return "gradients"
    kept = storage in structure.kept or label.recomputed
    return operator_category(label.op, label.phase, kept)


def operator_category(op: str, phase: str, kept: bool) -> str:
    """The category of what an operator makes, gradients apart. kept: for backward, or recomputed."""
    if op in BUFFER_OPS:
        return "buffers"
    if op in GATHERED_OPS:
        return "gathered"
    if op in COLLECTIVE_OPS:
        return "temporary"
    if op in _LOSS_OPS and (op == "loss" or phase != "backward"):
        return "loss"
    return "activations" if kept else "temporary"


#: After an event of a structure, and how many copies of earlier segments are not traced.
At = tuple[int, tuple[tuple[Segment, int], ...]]


def alive_by_category(
    structure: Structure, runs: tuple[Run, ...], values: Mapping[str, int], at: At
) -> dict[str, int]:
    """Bytes by category alive at a point of the timeline."""
    sizes = size_values(structure, values)
    totals = dict.fromkeys(CATEGORIES, 0)
    for storage, copies in alive_copies(structure, runs, at).items():
        totals[category(structure, storage)] += sizes[storage] * copies
    return totals


def alive_copies(structure: Structure, runs: tuple[Run, ...], at: At) -> dict[int, int]:
    """How many copies of each traced storage are alive at a point of the timeline."""
    late = dict(structure.late_frees)
    alive: Counter[int] = Counter()

    def add(start: int, end: int, times: int) -> None:
        for position in range(start, end):
            event = structure.events[position]
            if event >= 0:
                alive[event] += times
            else:
                run = late.get(position)
                alive[~event] -= times if run is None else times * (1 + runs[run].skipped)

    event, copies = at
    add(0, event + 1, 1)
    for segment, times in copies:
        add(segment.start, segment.end, times)
    return {storage: number for storage, number in alive.items() if number}


def end_of(structure: Structure, runs: tuple[Run, ...], until: int) -> At:
    """The point before an event that begins a segment, or after the last event."""
    copies = tuple(
        (segment, runs[segment.run].skipped)
        for segment in structure.segments
        if segment.end <= until and segment.run >= 0 and segment.repetition == 1
    )
    return until - 1, copies


def saved_per_layer(structure: Structure, runs: tuple[Run, ...], values: Mapping[str, int]) -> int:
    """Bytes one block of the longest run leaves behind in forward, casts of weights included."""
    if not runs:
        return 0
    longest = max(range(len(runs)), key=lambda i: runs[i].count * len(runs[i].pattern))
    middle = 1 if runs[longest].traced > 1 else 0
    segment: Segment = next(
        s
        for s in structure.segments
        if s.run == longest and s.direction == "forward" and s.repetition == middle
    )
    sizes = size_values(structure, values)
    kept = sum(
        sizes[e]
        for e in structure.events[segment.start : segment.end]
        if e >= 0 and e in structure.kept and not _is_gathered(structure, e)
    )
    return kept // len(runs[longest].pattern)


def _gathered_bytes(structure: Structure, runs: tuple[Run, ...], values: Mapping[str, int]) -> int:
    """Gathered parameters alive between forward and backward; nothing is saved for backward there."""
    times = multiplicity(runs)
    return sum(
        structure.sizes[storage].value(values) * times[_block(structure, storage)]
        for storage in structure.kept
        if _is_gathered(structure, storage)
    )


def _is_gathered(structure: Structure, storage: int) -> bool:
    return structure.labels[structure.labels_of[storage]].op in GATHERED_OPS


def _block(structure: Structure, storage: int) -> int:
    return structure.labels[structure.labels_of[storage]].block
