"""A traced micro-batch of the engine as events, blocks written out, to be held against PyTorch's."""

from __future__ import annotations

from memcalc.engine.plan import Plan
from memcalc.engine.program import expanded
from memcalc.engine.structure import Run, Structure
from memcalc.engine.timeline import size_values


def engine_events(
    plan: Plan, traced: tuple[Structure, tuple[Run, ...]]
) -> list[tuple[int, str, str] | int]:
    """(bytes, phase, where) of each allocation, bytes of each release. traced: of the plan."""
    structure, runs = traced
    stream = expanded(structure, runs)
    sizes = stream.sizes(size_values(structure, plan.values))
    events: list[tuple[int, str, str] | int] = []
    for event in stream.events:
        if event < 0:
            events.append(sizes[~event])
            continue
        label = structure.labels[structure.labels_of[stream.traced[event]]]
        layer = stream.layers[event]
        where = label.op if layer < 0 else f"{layer}/{label.op}"
        events.append((sizes[event], label.phase, where))
    return events
