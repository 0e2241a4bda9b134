"""A pipeline rank: its chunks of the model, traced and cut in pieces, and the step it runs.

A chunk's micro-batch is traced once (engine/trace.py, with the ends it has), and its forward and its
backward are two pieces: what each adds at its own peaks, and what it leaves. A chunk's first
micro-batch makes the gradients, the others add to them.
Checked by: oracle/test_pipeline.py, unit/test_stages.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import NamedTuple

from memcalc.engine.dtypes import ITEMSIZE
from memcalc.engine.memory import (
    CATEGORIES,
    OptimizerTrace,
    alive_by_category,
    end_of,
    input_bytes,
    trace_of_optimizer,
)
from memcalc.engine.parallel.pipeline.actions import Action, Pipe
from memcalc.engine.parallel.pipeline.pipeline_program import Step
from memcalc.engine.parallel.pipeline.pipeline_rules import rules_of_code
from memcalc.engine.parallel.pipeline.schedules import SPLIT_BACKWARD, chunks_of, most_in_flight
from memcalc.engine.parallel.ranks import chunk_layers, chunk_plan
from memcalc.engine.plan import Plan
from memcalc.engine.states import States, all_leaves, states
from memcalc.engine.structure import Run, Structure
from memcalc.engine.timeline import Instant, measure_between


class Piece(NamedTuple):
    """A forward or a backward of one micro-batch: bytes it leaves, and its peaks, over what was alive.

    kept: what it leaves, by category.
    """

    change: int
    peaks: tuple[Instant, ...]
    kept: Mapping[str, int]


class Stretch(NamedTuple):
    """What an action does: events begin to end of a traced micro-batch."""

    structure: Structure
    runs: tuple[Run, ...]
    begin: int
    end: int


class Traced(NamedTuple):
    """One chunk's micro-batch: by kind of action its piece, and its events (none: it does nothing)."""

    structure: Structure
    runs: tuple[Run, ...]
    pieces: Mapping[str, Piece]
    stretches: Mapping[str, Stretch]


class Chunk(NamedTuple):
    """A chunk of the model on this rank: its plan, its layers, and its micro-batches as far as they differ.

    number: among the chunks of the model. batches: micro-batches of a step.
    """

    number: int
    plan: Plan
    layers: range
    variants: tuple[Traced, ...]
    batches: int

    def variant(self, batch: int) -> int:
        """Which variant a micro-batch is: the first, the second that repeats, or the last."""
        is_last = batch == self.batches - 1 and len(self.variants) > 2
        return len(self.variants) - 1 if is_last else min(batch, 1, len(self.variants) - 1)

    def of(self, batch: int) -> Traced:
        """What a micro-batch runs."""
        return self.variants[self.variant(batch)]

    @property
    def traced(self) -> Traced:
        """Any of its micro-batches."""
        return self.variants[-1]


class Stage(NamedTuple):
    """One rank: its chunks, its step, and the bytes that are there before a step, by category."""

    plan: Plan
    rank: int
    chunks: tuple[Chunk, ...]
    step: Step
    states: States
    static: Mapping[str, int]
    optimizer: OptimizerTrace

    def chunk(self, number: int) -> Chunk:
        """The chunk of this number in the model."""
        return next(chunk for chunk in self.chunks if chunk.number == number)


def pipe_of(plan: Plan, batches: int | None = None) -> Pipe:
    """The shape of a plan's pipeline."""
    layout = plan.parallel
    return Pipe(layout.pp, layout.vpp, batches or plan.resolved.grad_accum_steps)


def stage_of(plan: Plan, rank: int) -> Stage:
    """Everything about one rank that its memory follows from."""
    pipe = pipe_of(plan)
    layers = chunk_layers(plan)
    chunks = tuple(
        _chunk(chunk_plan(plan, number), number, layers[number])
        for number in chunks_of(plan.parallel.schedule, pipe, rank)
    )
    held, step = _sum_of_states(chunks), step_of(plan, rank, pipe)
    leaves = [
        leaf for chunk in chunks for leaf in all_leaves(chunk.traced.structure, chunk.traced.runs)
    ]
    return Stage(
        plan=plan,
        rank=rank,
        chunks=chunks,
        step=step,
        states=held,
        static=_static(chunks, held, step),
        optimizer=trace_of_optimizer(leaves, plan),
    )


def step_of(plan: Plan, rank: int, pipe: Pipe) -> Step:
    """A rank's instructions for a pipe, under the runtime of the plan's stack."""
    return _step(rules_of_code(plan.resolved.setup.code).step, plan.parallel.schedule, pipe, rank)


@lru_cache(maxsize=64)
def _step(make: Callable[[str, Pipe, int], Step], schedule: str, pipe: Pipe, rank: int) -> Step:
    """Instructions follow from nothing else, and setups that are compared have the same pipes."""
    return make(schedule, pipe, rank)


def _chunk(plan: Plan, number: int, layers: range) -> Chunk:
    variants = tuple(_traced(plan, *batch) for batch in plan.strategy.micro_batches(plan))
    return Chunk(number, plan, layers, variants, plan.resolved.grad_accum_steps)


def _traced(plan: Plan, has_gradients: bool, reduces: bool) -> Traced:
    structure, runs = plan.structure(has_gradients, reduces)
    is_split = plan.parallel.schedule in SPLIT_BACKWARD
    values = tuple(sorted(plan.values.items()))
    key = ("pieces", tuple(run.count for run in runs), values, is_split)
    known = structure.cache.get(key)
    if not isinstance(known, Traced):
        stretches = _stretches(plan, has_gradients, reduces)
        if not is_split:
            stretches = {kind: stretches[kind] for kind in "FB"}
        pieces = {kind: _piece(one, plan.values) for kind, one in stretches.items()}
        known = structure.cache[key] = Traced(structure, runs, pieces, stretches)
    return known


def _stretches(plan: Plan, has_gradients: bool, reduces: bool) -> dict[str, Stretch]:
    """The events of each kind of action. The first chunk has no input: its weights' half is all."""
    structure, runs = plan.structure(has_gradients, reduces)
    cut, end = structure.forward_end, len(structure.events)
    whole = Stretch(structure, runs, cut, end)
    found = {"F": Stretch(structure, runs, 0, cut), "B": whole}
    if plan.parallel.schedule not in SPLIT_BACKWARD:
        return found
    if plan.ends[0]:
        return {**found, "I": Stretch(structure, runs, cut, cut), "W": whole}
    structure, runs = plan.structure(has_gradients, reduces, split=True)
    cut, half, end = structure.forward_end, structure.weights_begin, len(structure.events)
    half_of = {"I": (cut, half), "W": (half, end)}
    return {**found, **{kind: Stretch(structure, runs, *ends) for kind, ends in half_of.items()}}


def _piece(stretch: Stretch, values: Mapping[str, int]) -> Piece:
    """What a stretch of events leaves, and its peaks, over what was alive before it."""
    structure, runs, begin, end = stretch
    at_begin, at_end = (
        alive_by_category(structure, runs, values, end_of(structure, runs, until))
        for until in (begin, end)
    )
    before = sum(at_begin.values())
    instants = measure_between(structure, runs, values, (begin, end))
    return Piece(
        change=sum(at_end.values()) - before,
        peaks=tuple(one._replace(live_bytes=one.live_bytes - before) for one in instants),
        kept={name: at_end[name] - at_begin[name] for name in CATEGORIES},
    )


def _sum_of_states(chunks: tuple[Chunk, ...]) -> States:
    parts = []
    for chunk in chunks:
        plan, traced = chunk.plan, chunk.traced
        parts.append(
            states(traced.structure, traced.runs, plan.optimizer, plan.values, plan.strategy)
        )
    return States(*map(sum, zip(*parts, strict=True)))


def _static(chunks: tuple[Chunk, ...], held: States, step: Step) -> dict[str, int]:
    """Bytes alive before a step: states, token ids, buffers, and what the step before left."""
    plan, strategy = chunks[0].plan, chunks[0].plan.strategy
    static = dict.fromkeys(CATEGORIES, 0)
    static["parameters"] = held.parameter_bytes
    static["optimizer"] = held.optimizer_bytes + held.master_bytes
    for name, size in strategy.fixed_bytes_of_rank([chunk.plan for chunk in chunks]).items():
        static[name] += size
    by_number = {chunk.number: chunk for chunk in chunks}
    standing = sum(item_bytes(by_number[item.chunk], item.kind) for item in step.standing)
    static["buffers"] += id_bytes(plan, step) + standing
    existing = strategy.persistent_gradients or not plan.resolved.setup.set_to_none
    static["gradients"] += held.gradient_bytes if existing else 0
    return static


def id_bytes(plan: Plan, step: Step) -> int:
    """Token ids and labels that are on a rank (int64), and the table each chunk keeps."""
    setup, resolved = plan.resolved.setup, plan.resolved
    most = most_in_flight([one for one in step.instructions if isinstance(one, Action)])
    tables = plan.table_bytes * len(most)
    if rules_of_code(setup.code).all_ids:
        batches = resolved.grad_accum_steps + 1 + setup.separate_labels
        return 8 * resolved.tokens * batches + tables
    ends = {0, plan.parallel.chunks - 1}
    return input_bytes(plan) * sum(most[chunk] for chunk in ends & most.keys()) + tables


def item_bytes(chunk: Chunk, kind: str) -> int:
    """Bytes of what a chunk receives, makes for its neighbours, or is sent back, by kind of Item."""
    structure = chunk.traced.structure
    if kind == "stub":
        return ITEMSIZE[chunk.plan.kernels.compute_dtype]
    if kind in ("input", "gradient"):
        size = structure.handed.received
    else:
        size = structure.sizes[structure.handed.stream]
    return size.value(chunk.plan.values)


def item_sizes(stage: Stage) -> dict[tuple[str, int], int]:
    """Bytes of an item by its kind and chunk."""
    kinds = ("stream", "gradient", "input", "seed", "stub")
    return {(kind, c.number): item_bytes(c, kind) for c in stage.chunks for kind in kinds}
