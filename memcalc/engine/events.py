"""Every allocation and release of one training step, in order, as rows.

The step is the second or a later one: optimizer states exist. It begins with what is already there
(one row), runs its micro-batches (with accumulation the first and the second, which repeats), the
optimizer, and releases the gradients. The largest live_bytes is the estimate's peak_requested_bytes.
Not here: matmul workspaces and the allocator's rounding. Checked by: cli/test_timeline.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from memcalc.engine.memory import category, input_bytes, optimizer_trace
from memcalc.engine.parallel.strategy import Batch
from memcalc.engine.plan import Plan
from memcalc.engine.program import expanded
from memcalc.engine.states import states
from memcalc.engine.structure import Structure
from memcalc.engine.timeline import size_values

# A storage that outlives its micro-batch: block, (op, primitive, category), bytes.
Kept = tuple[int, tuple[str, str, str], int]


@dataclass(slots=True)
class Event:
    """One allocation (positive) or release (negative). layer is -1 outside the blocks."""

    phase: str
    layer: int
    op: str
    primitive: str
    allocated_bytes: int
    live_bytes: int
    category: str


@dataclass(slots=True)
class Recorder:
    """Events in the making, and bytes alive."""

    events: list[Event] = field(default_factory=list)
    live: int = 0

    def add(self, phase: str, layer: int, names: tuple[str, str, str], change: int) -> None:
        """One event; names: (op, primitive, category)."""
        self.live += change
        op, primitive, kind = names
        self.events.append(Event(phase, layer, op, primitive, change, self.live, kind))


def step_events(plan: Plan) -> list[Event]:
    """The events of one step."""
    structure, runs = plan.structure(*plan.peak_batch)
    held = states(structure, runs, plan.optimizer, plan.values, plan.strategy)
    out = Recorder()
    batches = plan.strategy.micro_batches(plan)
    stay = plan.strategy.persistent_gradients or not plan.resolved.setup.set_to_none
    for name, size in (
        ("parameters", held.parameter_bytes),
        ("optimizer", held.optimizer_bytes + held.master_bytes),
        ("buffers", input_bytes(plan)),
        ("gradients", held.gradient_bytes if stay else 0),
        *plan.strategy.fixed_bytes(plan).items(),
    ):
        if size:
            out.add("start", -1, (name, "existing", name), size)
    made: list[Kept] = []
    for batch in batches:
        made = _micro_batch(out, plan, batch, made)
    _optimizer(out, plan)
    if plan.resolved.setup.set_to_none:
        for layer, names, size in made:
            out.add("zero_grad", layer, names, -size)
    return out.events


def names_of(structure: Structure) -> list[tuple[str, str, str]]:
    """(op, primitive, category) of each storage a structure traced."""
    return [
        (structure.labels[structure.labels_of[traced]].op, primitive, category(structure, traced))
        for traced, primitive in enumerate(structure.names)
    ]


def _micro_batch(out: Recorder, plan: Plan, batch: Batch, kept: list[Kept]) -> list[Kept]:
    """Add one micro-batch; kept: gradients of earlier ones. Returns those there are after it."""
    structure, runs = plan.structure(*batch)
    written = expanded(structure, runs)
    sizes = size_values(structure, plan.values)
    names = names_of(structure)
    earlier = {identity: kept.pop(0) for identity in written.earlier}
    phase = "forward"
    alive: dict[int, None] = {}
    for event in written.events:
        storage = event if event >= 0 else ~event
        traced = written.traced[storage]
        if storage in earlier:
            layer, known, size = earlier[storage]
            out.add(phase, layer, known, -size)
            continue
        if event >= 0:
            phase = structure.labels[structure.labels_of[traced]].phase
            alive[storage] = None
        else:
            del alive[storage]
        size = sizes[traced] if event >= 0 else -sizes[traced]
        out.add(phase, written.layers[storage], names[traced], size)
    return kept + [
        (written.layers[storage], names[written.traced[storage]], sizes[written.traced[storage]])
        for storage in alive
    ]


def _optimizer(out: Recorder, plan: Plan) -> None:
    structure, runs = plan.structure(plan.keeps_gradients)
    trace = optimizer_trace(structure, runs, plan)
    sizes = trace.sizes(plan.values)
    for event in trace.events:
        storage = event if event >= 0 else ~event
        size = sizes[storage]
        names = (trace.ops[storage], trace.names[storage], "temporary")
        out.add("optimizer", -1, names, size if event >= 0 else -size)


def contributors(events: list[Event], count: int = 5) -> list[tuple[str, int, int]]:
    """The largest groups of storages alive at the peak: (what, how many, bytes), largest first."""
    peak = max(range(len(events)), key=lambda i: events[i].live_bytes)
    groups: dict[str, list[int]] = {}
    for event in events[: peak + 1]:
        name = event.op if event.primitive == "existing" else f"{event.op}: {event.primitive}"
        if event.category == "gradients" and event.primitive != "existing":
            name = "gradients"
        group = groups.setdefault(name, [0, 0])
        group[0] += 1 if event.allocated_bytes >= 0 else -1
        group[1] += event.allocated_bytes
    return largest(groups, count)


def largest(groups: Mapping[str, list[int]], count: int = 5) -> list[tuple[str, int, int]]:
    """The largest of (how many, bytes) by name, as (name, how many, bytes)."""
    ranked = sorted(groups.items(), key=lambda item: -item[1][1])
    return [(name, number, size) for name, (number, size) in ranked[:count] if size > 0]
