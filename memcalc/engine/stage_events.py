"""One pipeline rank's step as rows, as engine/events.py has them, and what is largest at its peak.

Rows are written out micro-batch by micro-batch in the order of the schedule. What a rank takes for its
neighbours, or lets go of, is a row with the primitive "pipeline".
Checked by: cli/test_stages.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from memcalc.engine.events import Event, Recorder, largest, names_of
from memcalc.engine.memory import At, alive_copies, category, end_of
from memcalc.engine.parallel.pipeline.actions import Action
from memcalc.engine.parallel.pipeline.pipeline import Chunk, Stage, Stretch, item_sizes
from memcalc.engine.parallel.pipeline.pipeline_memory import schedule_peak, stage_memory
from memcalc.engine.parallel.pipeline.pipeline_program import Item, Take
from memcalc.engine.program import expanded
from memcalc.engine.timeline import size_values


def stage_events(stage: Stage) -> list[Event]:
    """The events of one step of this rank; the largest live_bytes is its peak_requested_bytes."""
    out, sizes = Recorder(), item_sizes(stage)
    for name, size in stage.static.items():
        if size:
            out.add("start", -1, (name, "existing", name), size)
    gradients: list[tuple[int, tuple[str, str, str], int]] = []
    phase = "forward"
    for instruction in stage.step.instructions:
        if isinstance(instruction, Action):
            phase = _piece(out, stage.chunk(instruction.chunk), instruction, gradients)
        else:
            item = instruction.item
            sign = 1 if isinstance(instruction, Take) else -1
            names = (item.kind, "pipeline", _category(stage, item))
            out.add(phase, -1, names, sign * sizes[item[:2]])
    _optimizer(out, stage)
    if stage.plan.resolved.setup.set_to_none:
        for layer, names, size in gradients:
            out.add("zero_grad", layer, names, -size)
    return out.events


def _piece(
    out: Recorder,
    chunk: Chunk,
    action: Action,
    gradients: list[tuple[int, tuple[str, str, str], int]],
) -> str:
    """Add a forward or a backward; returns the phase it ends in, adds what it leaves of gradients."""
    stretch = chunk.of(action.batch).stretches[action.kind]
    structure = stretch.structure
    written = expanded(structure, stretch.runs)
    sizes, names = size_values(structure, chunk.plan.values), names_of(structure)
    cut, half, end = written.forward[0], structure.weights_begin, len(structure.events)
    begins = {0: 0, structure.forward_end: cut, half: half, end: len(written.events)}
    events = written.events[begins[stretch.begin] : begins[stretch.end]]
    freed, earlier = {~event for event in events if event < 0}, set(written.earlier)
    phase = "forward" if action.kind == "F" else "backward"
    for event in events:
        storage = event if event >= 0 else ~event
        kind, layer = written.traced[storage], written.layers[storage]
        layer += chunk.layers.start if layer >= 0 else 0
        if event >= 0:
            phase = structure.labels[structure.labels_of[kind]].phase
            if names[kind][2] == "gradients" and storage not in freed:
                gradients.append((layer, names[kind], sizes[kind]))
        elif storage in earlier:  # of an earlier micro-batch
            _take_off(gradients, sizes[kind])
        out.add(phase, layer, names[kind], sizes[kind] if event >= 0 else -sizes[kind])
    return phase


def _take_off(gradients: list[tuple[int, tuple[str, str, str], int]], size: int) -> None:
    """Forget a gradient of this size, if there is one."""
    for number, (_, _, known) in enumerate(gradients):
        if known == size:
            del gradients[number]
            return


def _optimizer(out: Recorder, stage: Stage) -> None:
    trace = stage.optimizer
    sizes = trace.sizes(stage.plan.values)
    for event in trace.events:
        storage = event if event >= 0 else ~event
        size = sizes[storage]
        names = (trace.ops[storage], trace.names[storage], "temporary")
        out.add("optimizer", -1, names, size if event >= 0 else -size)


def _category(stage: Stage, item: Item) -> str:
    if item.kind in ("input", "seed") or item.batch < 0:  # the latter: stands from the step before
        return "buffers"
    structure = stage.chunk(item.chunk).of(item.batch).structure
    handed = structure.handed
    return category(structure, handed.stream if item.kind == "stream" else handed.gradient)


def largest_of_stage(stage: Stage, count: int = 5) -> list[tuple[str, int, int]]:
    """The largest groups of storages alive at the rank's peak: (what, how many, bytes)."""
    groups: dict[str, list[int]] = {}
    for name, number, size in _alive(stage):
        group = groups.setdefault(name, [0, 0])
        group[0] += number
        group[1] += size
    return largest(groups, count)


def _alive(stage: Stage) -> Iterator[tuple[str, int, int]]:
    """What is alive at the peak, as (name, how many, bytes); what is gone is taken off again."""
    for name, size in stage.static.items():
        yield name, 1, size
    peak, memory = schedule_peak(stage), stage_memory(stage)
    in_optimizer = memory.peak.phase == "optimizer"
    done = stage.step.instructions[: None if in_optimizer else peak.position]
    actions = Counter(
        (one.kind, one.chunk, stage.chunk(one.chunk).variant(one.batch))
        for one in done
        if isinstance(one, Action)
    )
    for (kind, number, variant), times in actions.items():
        chunk = stage.chunk(number)
        stretch = chunk.variants[variant].stretches[kind]
        for until, sign in ((stretch.end, times), (stretch.begin, -times)):
            at = end_of(stretch.structure, stretch.runs, until)
            yield from _storages(chunk, stretch, at, sign)
    sizes = item_sizes(stage)
    for one in done:
        if not isinstance(one, Action):
            sign = 1 if isinstance(one, Take) else -1
            yield _name(stage, one.item), sign, sign * sizes[one.item[:2]]
    if in_optimizer:
        yield from _in_optimizer(stage, memory.peak.event)
        return
    action = stage.step.instructions[peak.position]
    assert isinstance(action, Action)
    chunk = stage.chunk(action.chunk)
    stretch = chunk.of(action.batch).stretches[action.kind]
    yield from _storages(chunk, stretch, (peak.instant.event, peak.instant.copies), 1)
    before = end_of(stretch.structure, stretch.runs, stretch.begin)
    yield from _storages(chunk, stretch, before, -1)


def _storages(chunk: Chunk, of: Stretch, at: At, times: int) -> Iterator[tuple[str, int, int]]:
    structure = of.structure
    sizes, names = size_values(structure, chunk.plan.values), names_of(structure)
    for storage, number in alive_copies(structure, of.runs, at).items():
        op, primitive, kind = names[storage]
        name = "gradients" if kind == "gradients" else f"{op}: {primitive}"
        yield name, number * times, number * times * sizes[storage]


def _name(stage: Stage, item: Item) -> str:
    """The name under which a piece counted what it hands on; received tensors are buffers."""
    if item.kind in ("input", "seed") or item.batch < 0:  # the latter: stands from the step before
        return "buffers"
    structure = stage.chunk(item.chunk).of(item.batch).structure
    handed = structure.handed
    storage = handed.stream if item.kind == "stream" else handed.gradient
    op, primitive, _ = names_of(structure)[storage]
    return f"{op}: {primitive}"


def _in_optimizer(stage: Stage, last: int) -> Iterator[tuple[str, int, int]]:
    """The optimizer's own tensors up to the allocation `last`."""
    trace = stage.optimizer
    sizes = trace.sizes(stage.plan.values)
    for event in trace.events:
        storage = event if event >= 0 else ~event
        sign = 1 if event >= 0 else -1
        yield f"{trace.ops[storage]}: {trace.names[storage]}", sign, sign * sizes[storage]
        if event == last:
            return
