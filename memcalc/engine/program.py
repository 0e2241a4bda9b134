"""Program: the whole run's allocations for the allocator's simulation.

Parameters, token ids, matmul workspaces, then the first step (optimizer states come into being after
its backward) and the second, which repeats for ever. Later programs (loading, evaluation, serving)
are other lists of phases over the same pieces.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from memcalc.engine.expand import Expanded, expand
from memcalc.engine.memory import OptimizerTrace, input_bytes, optimizer_trace
from memcalc.engine.optimizer import state_tensors
from memcalc.engine.plan import Plan
from memcalc.engine.sizes import product
from memcalc.engine.states import all_leaves
from memcalc.engine.structure import Run, Structure
from memcalc.engine.tensors import ITEMSIZE
from memcalc.engine.timeline import size_values

_EXPANDED: dict[tuple[object, ...], Expanded] = {}


@dataclass(slots=True)
class Stream:
    """Events for `allocator.simulate`: i >= 0 allocates block i of sizes[i] bytes, ~i frees it."""

    events: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    def allocate(self, size_bytes: int) -> int:
        """One more block; returns its id."""
        self.sizes.append(size_bytes)
        self.events.append(len(self.sizes) - 1)
        return len(self.sizes) - 1

    def splice(self, events: list[int] | tuple[int, ...], sizes: list[int]) -> list[int]:
        """Append a piece with its own ids; returns the ids still alive after it."""
        base = len(self.sizes)
        self.events += [e + base if e >= 0 else e - base for e in events]
        self.sizes += sizes
        freed = {~e for e in events if e < 0}
        return [base + i for i in range(len(sizes)) if i not in freed]


def expanded(structure: Structure, runs: tuple[Run, ...]) -> Expanded:
    """All events of a micro-batch, cached by structure and counts."""
    key = (id(structure), tuple(run.count for run in runs))
    known = _EXPANDED.get(key)
    if known is None:
        known = _EXPANDED[key] = expand(structure, runs)
    return known


def training_program(plan: Plan, workspaces: tuple[int, ...], steps: int = 2) -> Stream:
    """The stream of `steps` optimizer steps from an empty cache."""
    structure, runs = plan.structure(False)
    leaves = all_leaves(structure, runs)
    stream = Stream()
    elements = [leaf.numel.value(plan.values) for leaf in leaves]
    for leaf, numel in zip(leaves, elements, strict=True):
        stream.allocate(numel * ITEMSIZE[leaf.dtype])
    stream.allocate(input_bytes(plan))
    for size in workspaces:
        stream.allocate(size)
    trace = optimizer_trace(structure, runs, plan.optimizer, plan.values)
    gradients: list[int] = []
    for step in range(steps):
        for _ in range(min(plan.resolved.grad_accum_steps, 2)):
            alive = _micro_batch(stream, plan, bool(gradients))
            gradients = gradients or alive
        if step == 0:
            for leaf in leaves:
                for shape, dtype in state_tensors(leaf, plan.optimizer):
                    stream.allocate(product(shape).value(plan.values) * ITEMSIZE[dtype])
        _optimizer_step(stream, plan, trace)
        if plan.resolved.setup.set_to_none:
            stream.events += [~i for i in gradients]
            gradients = []
    return stream


def _micro_batch(stream: Stream, plan: Plan, has_gradients: bool) -> list[int]:
    structure, runs = plan.structure(has_gradients)
    events = expanded(structure, runs)
    return stream.splice(events.events, events.sizes(size_values(structure, plan.values)))


def _optimizer_step(stream: Stream, plan: Plan, trace: OptimizerTrace) -> None:
    unique = [size.value(plan.values) for size in trace.unique_sizes]
    stream.splice(trace.events, [unique[i] for i in trace.size_index])
