"""Memory of one rank: model states plus the timeline, phase by phase, with what is alive at the peak.

Live bytes of a phase are the bytes that were there before the step (parameters, optimizer states,
token ids, gradients that already exist) plus the timeline of the last micro-batch. Earlier
micro-batches never peak higher. The optimizer's step stands on all gradients.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from memcalc.engine.optimizer import run_step
from memcalc.engine.plan import Plan
from memcalc.engine.sizes import Size
from memcalc.engine.states import States, all_leaves, states
from memcalc.engine.structure import Run, Segment, Structure
from memcalc.engine.tensors import Tape
from memcalc.engine.timeline import Instant, Measured, measure, size_values

CATEGORIES = (
    "parameters", "gradients", "optimizer", "activations", "loss", "temporary", "buffers",
)  # fmt: skip
#: Ledger operators whose tensors are tables and masks, and those of head and loss.
BUFFER_OPS = frozenset({"rope_tables", "relative_table", "causal_mask", "alibi", "position_ids"})
_LOSS_OPS = frozenset({"lm_head", "loss"})


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
        tape = Tape(values=dict(plan.values))
        stepped = plan.strategy.optimized(all_leaves(structure, runs))
        run_step(tape, stepped, plan.optimizer)
        unique = list(dict.fromkeys(tape.sizes))
        index = {size: i for i, size in enumerate(unique)}
        known = structure.cache[key] = OptimizerTrace(
            tuple(tape.events),
            tuple(unique),
            tuple(index[size] for size in tape.sizes),
            tuple(tape.names),
            tuple(tape.labels[i].op for i in tape.labels_of),
        )
    return known


def input_bytes(plan: Plan) -> int:
    """Token ids of one micro-batch, and labels where they are a tensor of their own (int64)."""
    return 8 * plan.resolved.tokens * (2 if plan.resolved.setup.separate_labels else 1)


def step_memory(plan: Plan) -> StepMemory:
    """Requested bytes of the step: phases, peak, its instant and breakdown."""
    structure, runs = plan.structure(plan.keeps_gradients)
    held = states(structure, runs, plan.optimizer, plan.values, plan.strategy)
    fixed = plan.strategy.fixed_bytes(plan)
    batch = measure(structure, runs, plan.values)
    existing = held.gradient_bytes if plan.keeps_gradients else 0
    inputs = input_bytes(plan)
    static = held.parameter_bytes + held.optimizer_bytes + held.master_bytes + inputs
    static += sum(fixed.values())
    phases = {name: static + existing + i.live_bytes for name, i in batch.phases.items()}
    instants = dict(batch.phases)
    step = _optimizer_peak(optimizer_trace(structure, runs, plan), plan)
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
        breakdown["gradients"] += existing
        for name, size in _alive(structure, runs, plan.values, instants[winner]).items():
            breakdown[name] += size
    return StepMemory(
        states=held,
        peak_bytes=phases[winner],
        peak=instants[winner],
        phases=phases,
        instants=instants,
        breakdown=breakdown,
        saved_bytes=batch.saved_bytes,
        saved_per_layer_bytes=_saved_per_layer(structure, runs, plan.values, batch),
        input_bytes=inputs,
    )


def _static_breakdown(held: States, inputs: int) -> dict[str, int]:
    breakdown = dict.fromkeys(CATEGORIES, 0)
    breakdown["parameters"] = held.parameter_bytes
    breakdown["optimizer"] = held.optimizer_bytes + held.master_bytes
    breakdown["buffers"] = inputs
    return breakdown


def _optimizer_peak(trace: OptimizerTrace, plan: Plan) -> Instant:
    sizes = trace.sizes(plan.values)
    live = best = 0
    where = -1
    for event in trace.events:
        if event >= 0:
            live += sizes[event]
            if live > best:
                best, where = live, event
        else:
            live -= sizes[~event]
    name, op = ("", "optimizer") if where < 0 else (trace.names[where], trace.ops[where])
    return Instant(best, "optimizer", op, -1, name, False, where)


def category(structure: Structure, storage: int) -> str:
    """The breakdown's category of a traced storage."""
    label = structure.labels[structure.labels_of[storage]]
    if storage in structure.gradients:
        return "gradients"
    kept = storage in structure.kept or label.recomputed
    return operator_category(label.op, label.phase, kept)


def operator_category(op: str, phase: str, kept: bool) -> str:
    """The category of what an operator makes, gradients apart. kept: for backward, or recomputed."""
    if op in BUFFER_OPS:
        return "buffers"
    if op in _LOSS_OPS and (op == "loss" or phase != "backward"):
        return "loss"
    return "activations" if kept else "temporary"


def _alive(
    structure: Structure, runs: tuple[Run, ...], values: Mapping[str, int], instant: Instant
) -> dict[str, int]:
    """Bytes by category alive at an instant of the timeline."""
    sizes = size_values(structure, values)
    late = dict(structure.late_frees)
    totals = dict.fromkeys(CATEGORIES, 0)

    def add(start: int, end: int, times: int) -> None:
        for position in range(start, end):
            event = structure.events[position]
            storage = event if event >= 0 else ~event
            size = sizes[storage] * times
            if position in late and event < 0:
                size *= 1 + runs[late[position]].skipped
            totals[category(structure, storage)] += size if event >= 0 else -size

    add(0, instant.event + 1, 1)
    for segment, times in instant.copies:
        add(segment.start, segment.end, times)
    return totals


def _saved_per_layer(
    structure: Structure, runs: tuple[Run, ...], values: Mapping[str, int], batch: Measured
) -> int:
    """Bytes one block of the longest run leaves behind in forward, casts of weights included."""
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
        if e >= 0 and e in structure.kept
    )
    return kept // len(runs[longest].pattern)
