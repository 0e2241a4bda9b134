"""Grid: requested bytes of many sizes of one structure at once, NumPy arrays instead of numbers.

Plans that differ in sizes only (micro-batch, sequence) share their events; `together` makes one plan of
them, whose values are arrays with one element a plan (a lane). The formulas are those of `memory.py` and
`timeline.py`, over arrays. Exact: all is int64. Checked by: property/test_grid.py.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from memcalc.engine.memory import input_bytes, optimizer_peak, optimizer_trace
from memcalc.engine.plan import Plan
from memcalc.engine.states import States, states
from memcalc.engine.structure import Run, Structure

#: Elements of one array of live bytes at most: more lanes are taken in turns.
_MOST_ELEMENTS = 1 << 22


class NotOnGrid(Exception):
    """A plan that arrays cannot do; the scalar path can."""


def shape_of(plan: Plan) -> Hashable:
    """What plans of one grid have in common: all of a plan but the values of its dims.

    Raises NotOnGrid for pipelines (their schedule is simulated), segments that grow, offload, Muon and
    optimizers inside backward (whose order of events asks for values).
    """
    layout, optimizer = plan.parallel, plan.optimizer
    if layout.pp > 1 or layout.offload != "none" or plan.kernels.offloads:
        raise NotOnGrid("pipelines and offload")
    if plan.expandable or optimizer.in_backward or optimizer.name == "muon":
        raise NotOnGrid("expandable segments, Muon, optimizers inside backward")
    return (
        plan.kernels, plan.kinds, tuple(plan.dims.items()), optimizer, layout, plan.strategy,
        plan.ends, plan.strategy.micro_batches(plan), plan.peak_batches,
        plan.resolved.setup.separate_labels, plan.resolved.setup.set_to_none,
        None if plan.undivided is None else tuple(plan.undivided.dims.items()),
    )  # fmt: skip


def together(plans: Sequence[Plan], kind: str = "int64") -> Plan:
    """One plan for all of these: what differs between them is an array of this NumPy type.

    float64 for times, whose counts may go beyond 2^63.
    """
    import numpy as np

    first = plans[0]

    def column(found: list[Any]) -> Any:
        same = all(one == found[0] for one in found)
        return found[0] if same and len(found) > 1 else np.array(found, kind)

    values = {name: column([plan.values[name] for plan in plans]) for name in first.values}
    resolved = first.resolved._replace(
        micro_batch_size=column([plan.resolved.micro_batch_size for plan in plans]),
        seq_len=column([plan.resolved.seq_len for plan in plans]),
    )
    undivided = first.undivided and together([plan.whole for plan in plans], kind)
    return first._replace(values=values, resolved=resolved, undivided=undivided)


def requested_bytes(plan: Plan, lanes: int) -> Any:
    """Peak requested bytes of a step of each lane, shape (lanes,); `step_memory(...).peak_bytes`."""
    import numpy as np

    structure, runs = plan.structure(*plan.peak_batch)
    held = states(structure, runs, plan.optimizer, plan.values, plan.strategy)
    trace = optimizer_trace(structure, runs, plan)
    highest: Any = held.gradient_bytes + optimizer_peak(trace, plan).live_bytes
    for batch in plan.peak_batches:
        live = _live_peak(*plan.structure(*batch), plan, lanes)
        highest = np.maximum(highest, _existing(plan, batch.has_gradients, held) + live)
    static = held.parameter_bytes + held.optimizer_bytes + held.master_bytes
    static += input_bytes(plan) + plan.table_bytes
    return np.broadcast_to(static + sum(plan.strategy.fixed_bytes(plan).values()) + highest, lanes)


def _existing(plan: Plan, has_gradients: bool, held: States) -> int:
    """Gradients there are before a micro-batch."""
    exist = has_gradients or plan.strategy.persistent_gradients
    more = plan.strategy.unreduced_bytes(plan) if has_gradients else 0
    return (held.gradient_bytes if exist else 0) + more


def _live_peak(structure: Structure, runs: tuple[Run, ...], plan: Plan, lanes: int) -> Any:
    """Most live bytes of a micro-batch of each lane, over what was there before."""
    import numpy as np

    unique = [size.value(plan.values) for size in structure.unique_sizes]
    turn = max(1, _MOST_ELEMENTS // max(1, len(structure.events)))
    found = []
    for start in range(0, lanes, turn):
        here = slice(start, min(start + turn, lanes))
        rows = [np.broadcast_to(size, lanes)[here] for size in unique]
        found.append(_highest(structure, runs, np.array(rows, np.int64)))
    return np.concatenate(found)


def _highest(structure: Structure, runs: tuple[Run, ...], unique: Any) -> Any:
    """`timeline.measure`'s peak, of sizes (unique sizes, lanes)."""
    import numpy as np

    events = np.array(structure.events)
    made = events >= 0
    changes = unique[np.array(structure.size_index)[np.where(made, events, ~events)]]
    changes[~made] *= -1
    for position, run in structure.late_frees:
        changes[position] *= 1 + runs[run].skipped
    live = np.cumsum(changes, axis=0)
    zero = np.zeros(unique.shape[1], np.int64)
    offset = best = zero
    for segment in structure.segments:
        if segment.end == segment.start:
            continue
        inside = live[segment.start : segment.end]
        before = live[segment.start - 1] if segment.start else zero
        at = made[segment.start : segment.end]
        skipped = runs[segment.run].skipped if segment.run >= 0 and segment.repetition == 1 else 0
        more = skipped * (inside[-1] - before)
        if at.any():
            top = inside[at].max(axis=0) + offset
            best = np.maximum(best, np.maximum(top, top + more))
        offset = offset + more
    return best
