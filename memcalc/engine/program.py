"""Program: the whole run's allocations for the allocator's simulation.

Parameters, token ids, matmul workspaces, then the first step (optimizer states come into being after
its backward) and the second, which repeats for ever. Later programs (loading, evaluation, serving)
are other lists of phases over the same pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from memcalc.engine.allocator.streams import streams_of
from memcalc.engine.dtypes import ITEMSIZE
from memcalc.engine.expand import Expanded, expand
from memcalc.engine.in_backward import first_step
from memcalc.engine.memory import input_bytes, optimizer_trace
from memcalc.engine.optimizer import state_tensors
from memcalc.engine.parallel.strategy import Batch
from memcalc.engine.plan import Plan
from memcalc.engine.sizes import product
from memcalc.engine.states import all_leaves, bytes_of_held
from memcalc.engine.structure import Run, Structure
from memcalc.engine.tensors import Tensor
from memcalc.engine.timeline import size_values


@dataclass(eq=False)
class Stream:
    """Events for `allocator.simulate`: i >= 0 allocates block i of sizes[i] bytes, ~i frees it."""

    events: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    phases: list[tuple[int, str]] = field(default_factory=list)  # (first event, name)
    streams: dict[int, int] = field(default_factory=dict)  # blocks not of the computing stream

    def allocate(self, size_bytes: int) -> int:
        """One more block; returns its id."""
        self.sizes.append(size_bytes)
        self.events.append(len(self.sizes) - 1)
        return len(self.sizes) - 1

    def splice(
        self,
        events: list[int] | tuple[int, ...],
        sizes: list[int],
        taken: Mapping[int, int] = {},  # noqa: B006  # never changed
    ) -> list[int]:
        """Append a piece with its own ids; returns the ids still alive after it.

        taken: ids of the piece that it only frees, with the blocks of earlier pieces that they are.
        """
        base = len(self.sizes)
        if taken:
            self.events += [e + base if e >= 0 else ~taken.get(~e, ~e + base) for e in events]
        else:
            self.events += [e + base if e >= 0 else e - base for e in events]
        self.sizes += sizes
        freed = {~e for e in events if e < 0}
        return [base + i for i in range(len(sizes)) if i not in freed]


def expanded(structure: Structure, runs: tuple[Run, ...]) -> Expanded:
    """All events of a micro-batch, cached by structure and counts."""
    key = ("expanded", tuple(run.count for run in runs))
    known = structure.cache.get(key)
    if not isinstance(known, Expanded):
        known = structure.cache[key] = expand(structure, runs)
    return known


class Phase(NamedTuple):
    """One stretch of a program: a name, and what appends its events to the stream."""

    name: str
    play: Callable[[Stream], None]


def play(program: Sequence[Phase]) -> Stream:
    """The stream of a program, with the event at which each phase begins."""
    stream = Stream()
    for phase in program:
        stream.phases.append((len(stream.events), phase.name))
        phase.play(stream)
    return stream


def training_program(plan: Plan, workspaces: tuple[int, ...], steps: int = 2) -> Stream:
    """The stream of `steps` optimizer steps from an empty cache."""
    return play(training_phases(plan, workspaces, steps))


def training_phases(plan: Plan, workspaces: tuple[int, ...], steps: int) -> list[Phase]:
    """Loading, then for each step its micro-batches (those that differ) and the optimizer."""
    persistent = plan.strategy.persistent_gradients
    structure, runs = plan.structure(persistent)
    leaves = all_leaves(structure, runs)
    trace = optimizer_trace(structure, runs, plan)
    stepped = plan.strategy.optimized(leaves)
    gradients: list[int] = []

    def load(stream: Stream) -> None:
        for leaf in leaves:
            stream.allocate(bytes_of_held(plan.strategy.parameter(leaf), plan.values))
        for size in (*standing_blocks(plan, leaves), *state_blocks(plan, stepped)[0]):
            stream.allocate(size)
        stream.allocate(input_bytes(plan) + plan.table_bytes)
        for size in workspaces:
            stream.allocate(size)
        made = [stream.allocate(size) for size in plan.strategy.loading_bytes(plan)]
        stream.events += [~block for block in made]

    def micro_batch(batch: Batch, stream: Stream) -> None:
        exist = batch.has_gradients and (persistent or bool(gradients))
        _micro_batch(stream, plan, batch._replace(has_gradients=exist), gradients)

    def make_states(stream: Stream) -> None:
        for size in state_blocks(plan, stepped)[1]:
            stream.allocate(size)

    def optimizer_step(stream: Stream) -> None:
        stream.splice(trace.events, trace.sizes(plan.values))
        if plan.resolved.setup.set_to_none:
            stream.events += [~i for i in gradients]
            gradients.clear()

    if plan.optimizer.in_backward:
        return [Phase("load", load), *_in_backward(plan, steps)]
    batches = [
        Phase("micro-batch", partial(micro_batch, batch))
        for batch in plan.strategy.micro_batches(plan)
    ]
    step = [*batches, Phase("optimizer", optimizer_step)]
    first = [*batches, Phase("optimizer states", make_states), Phase("optimizer", optimizer_step)]
    return [Phase("load", load), *first, *(step * (steps - 1))]


def _in_backward(plan: Plan, steps: int) -> list[Phase]:
    """Steps whose optimizer runs inside backward; its states are made there in the first."""
    batch = plan.strategy.micro_batches(plan)[0]

    def one(planned: Plan, stream: Stream) -> None:
        _micro_batch(stream, planned, batch, [])  # what stays alive are states: nobody frees them

    later = Phase("micro-batch", partial(one, plan))
    return [Phase("micro-batch", partial(one, first_step(plan))), *([later] * (steps - 1))]


def state_blocks(plan: Plan, stepped: list[Tensor]) -> tuple[list[int], list[int]]:
    """Blocks of optimizer states: those made before the first step, those it makes."""
    masters, made = 0, []
    for leaf in stepped:
        for index, (shape, dtype) in enumerate(state_tensors(leaf, plan.optimizer)):
            size = product(shape).value(plan.values) * ITEMSIZE[dtype]
            if index == 0 and plan.optimizer.master and plan.strategy.flat_masters:
                masters += size
            else:
                made.append(size)
    return ([masters] if masters else []), made


def standing_blocks(plan: Plan, leaves: list[Tensor]) -> list[int]:
    """Blocks that stand for the whole run beside parameters and states: gradients, buffers."""
    strategy = plan.strategy
    buckets = strategy.buckets(plan)
    if buckets:
        return buckets
    kept = [strategy.gradient(leaf) for leaf in leaves] if strategy.persistent_gradients else []
    sizes = [bytes_of_held(gradient, plan.values) for gradient in kept]
    return [*sizes, *strategy.fixed_bytes(plan).values()]


def _micro_batch(stream: Stream, plan: Plan, batch: Batch, gradients: list[int]) -> None:
    """Play a micro-batch; gradients: the storages of those there are, replaced by what is then."""
    structure, runs = plan.structure(*batch)
    events = expanded(structure, runs)
    sizes = events.sizes(size_values(structure, plan.values))
    waiting: dict[int, list[int]] = {}
    for storage in gradients:
        waiting.setdefault(stream.sizes[storage], []).append(storage)
    taken = {identity: waiting[sizes[identity]].pop(0) for identity in events.earlier}
    base = len(stream.sizes)
    alive = stream.splice(events.events, sizes, taken)
    if plan.kernels.loss_end is not None and plan.resolved.grad_accum_steps > 1:
        alive = _without_outputs(
            stream, alive, [events.traced[i - base] in structure.gradients for i in alive]
        )
    stream.streams |= {base + block: own for block, own in streams_of(structure, events).items()}
    gone = set(taken.values())
    gradients[:] = [*(storage for storage in gradients if storage not in gone), *alive]


def _without_outputs(stream: Stream, alive: list[int], learns: list[bool]) -> list[int]:
    """Gradients alone: outputs that PPO's loop still holds go when the next micro-batch has its own."""
    stream.events += [~block for block, kept in zip(alive, learns, strict=True) if not kept]
    return [block for block, kept in zip(alive, learns, strict=True) if kept]
