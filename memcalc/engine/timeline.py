"""Timeline: live bytes of one micro-batch at every allocation, for any number of blocks.

A structure holds up to three repetitions of each run. Live bytes at an event of the interior
repetition number t are those of the traced one plus t times what one repetition leaves behind, so
the maximum over all interior repetitions is at the first or the last of them. `measure` uses that
and touches each traced event once; `expand` writes out every event of every block, for the
allocator's simulation and for plots. A test holds the two against each other and against a trace
of all blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import NamedTuple

from memcalc.engine.structure import Run, Segment, Structure


class Instant(NamedTuple):
    """An allocation at which live bytes peak: where it is, in terms of the true model."""

    live_bytes: int
    phase: str
    op: str
    layer: int  # -1 outside the blocks
    primitive: str
    recomputed: bool
    event: int  # index in the traced event list
    copies: tuple[tuple[Segment, int], ...] = ()  # (segment, copies of its change included)
    micro_batch: int = -1  # in a pipeline

    @property
    def name(self) -> str:
        """`phase/op`, with the layer in between where there is one."""
        place = self.op if self.layer < 0 else f"layers.{self.layer}/{self.op}"
        return f"{self.phase}/{place}"


class Measured(NamedTuple):
    """Result of `measure`: peaks over the bytes that were there before the micro-batch."""

    peak: Instant
    phases: dict[str, Instant]
    saved_bytes: int  # alive between the end of forward and the start of backward
    kept_bytes: int  # alive at the end of backward (new gradients)


def size_values(structure: Structure, dims: Mapping[str, int]) -> list[int]:
    """The bytes of each traced storage."""
    unique = [size.value(dims) for size in structure.unique_sizes]
    return [unique[i] for i in structure.size_index]


def live_bytes(structure: Structure, runs: tuple[Run, ...], sizes: list[int]) -> list[int]:
    """Live bytes after each traced event; a late free also frees what the untraced copies made."""
    changes = [sizes[e] if e >= 0 else -sizes[~e] for e in structure.events]
    for position, run in structure.late_frees:
        changes[position] *= 1 + runs[run].skipped
    return list(accumulate(changes))


def measure(structure: Structure, runs: tuple[Run, ...], dims: Mapping[str, int]) -> Measured:
    """Peaks of forward, loss and backward, and bytes saved, for runs of the given counts."""
    sizes = size_values(structure, dims)
    live = live_bytes(structure, runs, sizes)
    phases: dict[str, Instant] = {}
    copies: list[tuple[Segment, int]] = []
    offset = 0
    saved = 0
    for segment in structure.segments:
        before = live[segment.start - 1] if segment.start else 0
        after = live[segment.end - 1] if segment.end else 0
        if segment.start == structure.forward_end:
            saved = before + offset
        skipped = _skipped(runs, segment)
        change = after - before
        _peaks(structure, segment, live, (offset, 0), copies, phases)
        if skipped:
            _peaks(structure, segment, live, (offset + skipped * change, skipped), copies, phases)
            offset += skipped * change
            copies.append((segment, skipped))
    peak = max(phases.values(), key=lambda instant: instant.live_bytes)
    located = {name: _locate(structure, runs, instant) for name, instant in phases.items()}
    return Measured(located[peak.phase], located, saved, live[-1] + offset)


def measure_between(
    structure: Structure, runs: tuple[Run, ...], dims: Mapping[str, int], ends: tuple[int, int]
) -> list[Instant]:
    """The peak of each phase between two events at which segments begin (or the last event)."""
    sizes = size_values(structure, dims)
    live = live_bytes(structure, runs, sizes)
    phases: dict[str, Instant] = {}
    copies: list[tuple[Segment, int]] = []
    offset = 0
    for segment in structure.segments:
        change = (live[segment.end - 1] if segment.end else 0) - (
            live[segment.start - 1] if segment.start else 0
        )
        skipped = _skipped(runs, segment)
        shifts = [(offset, 0)]
        if skipped:
            shifts.append((offset + skipped * change, skipped))
            offset += skipped * change
        if ends[0] <= segment.start and segment.end <= ends[1]:
            for shift in shifts:
                _peaks(structure, segment, live, shift, copies, phases)
        if skipped:
            copies.append((segment, skipped))
    return [_locate(structure, runs, instant) for instant in phases.values()]


def _skipped(runs: tuple[Run, ...], segment: Segment) -> int:
    """Interior repetitions this segment stands for besides itself."""
    return runs[segment.run].skipped if segment.run >= 0 and segment.repetition == 1 else 0


def _peaks(
    structure: Structure,
    segment: Segment,
    live: list[int],
    shift: tuple[int, int],
    copies: list[tuple[Segment, int]],
    phases: dict[str, Instant],
) -> None:
    """Raise each phase's peak with this segment's allocations, shifted by (bytes, copies)."""
    offset, copied = shift
    best: dict[str, tuple[int, int]] = {}
    events, labels, labels_of = structure.events, structure.labels, structure.labels_of
    for position in range(segment.start, segment.end):
        event = events[position]
        if event < 0:
            continue
        phase = labels[labels_of[event]].phase
        known = best.get(phase)
        if known is None or live[position] > known[0]:
            best[phase] = (live[position], position)
    for phase, (value, position) in best.items():
        current = phases.get(phase)
        if current is None or value + offset > current.live_bytes:
            storage = events[position]
            label = labels[labels_of[storage]]
            included = (*copies, (segment, copied)) if copied else tuple(copies)
            phases[phase] = Instant(
                value + offset,
                phase,
                label.op,
                label.block,
                structure.names[storage],
                label.recomputed,
                position,
                included,
            )


def _locate(structure: Structure, runs: tuple[Run, ...], instant: Instant) -> Instant:
    """The instant with its traced block turned into the layer of the true model."""
    if instant.layer < 0:
        return instant
    segment = next(s for s in structure.segments if s.start <= instant.event < s.end)
    copied = sum(n for s, n in instant.copies if s is segment)
    layer = true_layer(structure, runs, segment, instant.layer, copied)
    return Instant(
        instant.live_bytes, instant.phase, instant.op, layer, instant.primitive,
        instant.recomputed, instant.event, instant.copies,
    )  # fmt: skip


def true_layer(
    structure: Structure, runs: tuple[Run, ...], segment: Segment, block: int, copy: int
) -> int:
    """Layer index of a traced block, for the copy-th time its segment is passed."""
    before = 0
    first = 0
    for index, run in enumerate(runs):
        blocks = run.traced * len(run.pattern)
        if block < first + blocks:
            repetition, position = divmod(block - first, len(run.pattern))
            if index == segment.run:  # a neighbour's distance is the same in every copy
                true = true_repetition(run, segment, copy) + repetition - segment.repetition
            else:
                true = repetition if repetition < 2 else repetition + run.skipped
            return before + true * len(run.pattern) + position
        first += blocks
        before += run.count * len(run.pattern)
    return block


def true_repetition(run: Run, segment: Segment, copy: int) -> int:
    """Which repetition of the true model a segment of this run is, the copy-th time it is passed."""
    if segment.repetition != 1:
        return segment.repetition + (run.skipped if segment.repetition else 0)
    descends = segment.direction.startswith("backward")
    return 1 + run.skipped - copy if descends else 1 + copy
