"""Every allocation and release of one training step, in order, as rows.

The step is the second or a later one: optimizer states exist. It begins with what is already there
(one row), runs its micro-batches (with accumulation the first and the second, which repeats), the
optimizer, and releases the gradients. The largest live_bytes is the estimate's peak_requested_bytes.
Not here: matmul workspaces and the allocator's rounding. Checked by: cli/test_timeline.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from memcalc.engine.memory import category, input_bytes, optimizer_trace
from memcalc.engine.plan import Plan
from memcalc.engine.program import expanded
from memcalc.engine.states import states
from memcalc.engine.timeline import size_values

COLUMNS = ("index", "phase", "layer", "op", "primitive", "allocated_bytes", "live_bytes")


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
class _Recorder:
    events: list[Event] = field(default_factory=list)
    live: int = 0

    def add(self, phase: str, layer: int, names: tuple[str, str, str], change: int) -> None:
        self.live += change
        op, primitive, kind = names
        self.events.append(Event(phase, layer, op, primitive, change, self.live, kind))


def step_events(plan: Plan) -> list[Event]:
    """The events of one step."""
    structure, runs = plan.structure(False)
    held = states(structure, runs, plan.optimizer, plan.values)
    out = _Recorder()
    has_gradients = not plan.resolved.setup.set_to_none
    for name, size in (
        ("parameters", held.parameter_bytes),
        ("optimizer", held.optimizer_bytes + held.master_bytes),
        ("buffers", input_bytes(plan)),
        ("gradients", held.gradient_bytes if has_gradients else 0),
    ):
        if size:
            out.add("start", -1, (name, "existing", name), size)
    made: list[tuple[int, tuple[str, str, str], int]] = []
    for _ in range(min(plan.resolved.grad_accum_steps, 2)):
        made += _micro_batch(out, plan, has_gradients)
        has_gradients = True
    _optimizer(out, plan)
    if plan.resolved.setup.set_to_none:
        for layer, names, size in made:
            out.add("zero_grad", layer, names, -size)
    return out.events


def _micro_batch(
    out: _Recorder, plan: Plan, has_gradients: bool
) -> list[tuple[int, tuple[str, str, str], int]]:
    """Add one micro-batch; returns what stays, its gradients."""
    structure, runs = plan.structure(has_gradients)
    written = expanded(structure, runs)
    sizes = size_values(structure, plan.values)
    names: dict[int, tuple[str, str, str]] = {}
    for traced, primitive in enumerate(structure.names):
        label = structure.labels[structure.labels_of[traced]]
        names[traced] = (label.op, primitive, category(structure, traced))
    phase = "forward"
    alive: dict[int, None] = {}
    for event in written.events:
        storage = event if event >= 0 else ~event
        traced = written.traced[storage]
        if event >= 0:
            phase = structure.labels[structure.labels_of[traced]].phase
            alive[storage] = None
        else:
            del alive[storage]
        size = sizes[traced] if event >= 0 else -sizes[traced]
        out.add(phase, written.layers[storage], names[traced], size)
    return [
        (written.layers[storage], names[written.traced[storage]], sizes[written.traced[storage]])
        for storage in alive
    ]


def _optimizer(out: _Recorder, plan: Plan) -> None:
    structure, runs = plan.structure(plan.keeps_gradients)
    trace = optimizer_trace(structure, runs, plan)
    sizes = trace.sizes(plan.values)
    for event in trace.events:
        storage = event if event >= 0 else ~event
        size = sizes[storage]
        names = (trace.ops[storage], trace.names[storage], "temporary")
        out.add("optimizer", -1, names, size if event >= 0 else -size)


def write_events(events: list[Event], path: str) -> None:
    """Write the rows as CSV, or as a JSON list of objects, by the file's ending."""
    from memcalc.errors import ConfigError
    from memcalc.output.files import write_text

    rows = [
        (i, e.phase, e.layer, e.op, e.primitive, e.allocated_bytes, e.live_bytes)
        for i, e in enumerate(events)
    ]
    if path.lower().endswith(".json"):
        import json

        body = ",\n".join(json.dumps(dict(zip(COLUMNS, row, strict=True))) for row in rows)
        write_text(path, f"[\n{body}\n]\n")
    elif path.lower().endswith(".csv"):
        lines = [",".join(COLUMNS), *(",".join(map(str, row)) for row in rows)]
        write_text(path, "\n".join(lines) + "\n")
    else:
        raise ConfigError(f"--timeline: got {path!r}; rule: a file ending in .csv or .json")


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
    ranked = sorted(groups.items(), key=lambda item: -item[1][1])
    return [(name, number, size) for name, (number, size) in ranked[:count] if size > 0]
