"""What blocks and the two ends of a model add to a micro-batch, each apart, for many sizes at once.

A block of Megatron's takes, leaves and computes the same wherever it stands, so a chunk of any number of
blocks is a sum over its kinds of blocks and its ends. They are read off structures that have one block of
each kind: one that begins the model, one that ends it, one that does both. Lanes are sizes (micro-batch,
tp, ...) of one structure. Checked by: property/test_search_grid.py, against whole estimates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from memcalc.engine.ledger import Collective
from memcalc.engine.plan import Plan
from memcalc.engine.structure import Segment, Structure
from memcalc.engine.timing.op_time import Priced, attention_code, priced_for, work_s
from memcalc.engine.works import Work, works_by_block
from memcalc.inputs.rates import Rates

Dims = Mapping[str, Any]


class Bytes(NamedTuple):
    """Live bytes of a part of a chunk: forward and backward, over what was there before each.

    kept: what forward leaves; more: what backward leaves beyond taking that back. Peaks are 0 where
    nothing is made.
    """

    kept: Any
    forward_peak: Any
    backward_peak: Any
    more: Any


class Seconds(NamedTuple):
    """Seconds of a part of a chunk, kernels and exchanges inside layers, and kernels launched.

    backward: with what it computes again. inside: what exchanges of layers show, hidden work's slowing
    included.
    """

    forward_s: Any = 0.0
    backward_s: Any = 0.0
    forward_launches: int = 0
    backward_launches: int = 0
    forward_inside_s: Any = 0.0
    backward_inside_s: Any = 0.0

    def plus(self, other: Seconds) -> Seconds:
        """Both, one after the other."""
        return Seconds(*(a + b for a, b in zip(self, other, strict=True)))


class Parts(NamedTuple):
    """A structure's parts: before the blocks, each block as traced, after them; stream: what is sent."""

    first: Bytes
    blocks: tuple[Bytes, ...]
    last: Bytes
    stream: Any


def live_parts(structure: Structure, dims: Dims, lanes: int) -> Parts:
    """Bytes of the parts of a structure, int64 arrays of shape (lanes,)."""
    import numpy as np

    rows = [np.broadcast_to(size.value(dims), lanes) for size in structure.unique_sizes]
    unique = np.array(rows, np.int64)
    events = np.array(structure.events)
    made = events >= 0
    changes = unique[np.array(structure.size_index)[np.where(made, events, ~events)]]
    changes[~made] *= -1
    live = np.concatenate([np.zeros((1, lanes), np.int64), np.cumsum(changes, axis=0)])
    cut = structure.forward_end
    forward = [s for s in structure.segments if s.start < cut]
    backward = [s for s in structure.segments if s.start >= cut]
    blocks = sum(run.traced * len(run.pattern) for run in structure.runs)

    def over(segments: list[Segment]) -> tuple[Any, Any]:
        """(change, peak) of some segments one after the other."""
        if not segments:
            return np.zeros(lanes, np.int64), np.zeros(lanes, np.int64)
        start, end = segments[0].start, segments[-1].end
        at = np.flatnonzero(made[start:end]) + start + 1
        peak = live[at].max(axis=0) - live[start] if len(at) else np.zeros(lanes, np.int64)
        return live[end] - live[start], peak

    def part(ahead: list[Segment], behind: list[Segment]) -> Bytes:
        kept, peak = over(ahead)
        gone, backward_peak = over(behind)
        return Bytes(kept, peak, backward_peak, gone + kept)

    ahead, behind = _split(forward), _split(backward)
    assert len(ahead[1]) == len(behind[1]) == blocks
    return Parts(
        part(ahead[0], behind[2]),
        tuple(part([a], [b]) for a, b in zip(ahead[1], reversed(behind[1]), strict=True)),
        part(ahead[2], behind[0]),
        np.broadcast_to(structure.sizes[structure.handed.stream].value(dims), lanes),
    )


def _split(segments: list[Segment]) -> tuple[list[Segment], list[Segment], list[Segment]]:
    """Segments before the blocks, of the blocks, after them, in the order they run."""
    inside = [at for at, one in enumerate(segments) if one.run >= 0]
    first, last = inside[0], inside[-1] + 1
    return segments[:first], segments[first:last], segments[last:]


class Pricer:
    """Seconds of works and exchanges of one structure's lanes; works that are alike are priced once.

    exchange_s: (kind, axis, bytes of a call) to seconds, an array; ranks: of an axis, by lane.
    """

    def __init__(self, plan: Plan, rates: Rates, dims: Dims, wires: Any) -> None:
        self.plan, self.rates, self.dims, self.wires = plan, rates, dims, wires
        self.priced = priced_for(plan, rates)
        self.beside = Priced(rates, attention_code(plan, rates))
        self.known: dict[tuple[Work, bool], Any] = {}

    def work(self, work: Work, beside: bool = False) -> Any:
        """Seconds of a row, once. beside: as exchanges.py prices what runs beside an exchange."""
        key = (work, beside)
        if key not in self.known:
            self.known[key] = work_s(work, self.beside if beside else self.priced, self.dims)[0]
        return self.known[key]

    def parts(self, structure: Structure) -> dict[int, Seconds]:
        """Seconds of each traced block, -1: of both ends together."""
        tf32 = self.plan.resolved.setup.precision == "tf32"
        works = works_by_block(structure, tf32)
        found = {}
        for block, counted in works.items():
            seconds: list[Any] = [0.0, 0.0]
            launches = [0, 0]
            for work, times in counted:
                at = 0 if work.direction == "forward" else 1
                seconds[at] = seconds[at] + times * self.work(work) * self.rates.sum_residual
                launches[at] += times * work.launches
            found[block] = Seconds(*seconds, *launches)
        for block, inside in self._inside(structure).items():
            known = found.get(block, Seconds())
            found[block] = known._replace(forward_inside_s=inside[0], backward_inside_s=inside[1])
        return found

    def _inside(self, structure: Structure) -> dict[int, list[Any]]:
        """What exchanges of each block's own operators show, forward and backward."""
        from memcalc.engine.timing.exchanges import collectives_of

        calls: dict[tuple[int, str, Collective], int] = {}
        for block, op, one, times in collectives_of(structure):
            key = (block, op, one)
            calls[key] = calls.get(key, 0) + times
        slower = self.rates.overlap_slowdown
        found: dict[int, list[Any]] = {}
        for (block, op, one), times in calls.items():
            seconds = times * self.wires.exchange_s(one.kind, one.axis, one.size.value(self.dims))
            shown: Any = seconds
            if one.beside and (one.axis == "cp" or self.wires.beside_products):
                shown = self._shown(structure, (block, op, one), times, (seconds, slower))
            sums = found.setdefault(block, [0.0, 0.0])
            at = 0 if one.direction == "forward" else 1
            sums[at] = sums[at] + shown
        return found

    def _shown(
        self,
        structure: Structure,
        what: tuple[int, str, Collective],
        times: int,
        rate: tuple[Any, float],
    ) -> Any:
        """What shows of an exchange beside the products of its own operator."""
        import numpy as np

        block, op, one = what
        seconds, slower = rate
        kind, _, share = one.beside.partition("/")
        ranks = self.wires.ranks(one.axis)
        parts = {"": 1, "n": ranks, "2n": 2 * ranks}[share]
        part = kind if kind in ("dgrad", "wgrad") else ""
        beside: Any = 0.0
        for work, count in works_by_block(structure, False).get(block, ()):
            mine = work.op == op and work.kind != "moved" and work.direction == one.direction
            if mine and part in ("", work.part):
                beside = beside + count * self.work(work, True)
        beside = times * beside / parts
        return np.maximum(seconds - beside, 0.0) + slower * np.minimum(seconds, beside)
