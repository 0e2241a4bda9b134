"""Write out every event of every block from a structure that holds a few repetitions of each run.

The k-th allocation of an interior repetition is the counterpart of the k-th allocation of its
neighbours; a reference to something the previous repetition made is moved along with the copy.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from memcalc.engine.structure import Run, Segment, Structure
from memcalc.engine.tensors import FIRST
from memcalc.engine.timeline import true_layer, true_repetition


@dataclass(eq=False)
class Expanded:
    """All events: i >= 0 allocates storage i, ~i frees it; traced[i] is the storage it copies.

    layers[i] is the true layer of the allocation, -1 outside the blocks. earlier: storages of an
    earlier micro-batch, which are freed and never allocated here. forward: how many events, and how
    many storages, there are before backward begins.
    """

    events: list[int] = field(default_factory=list)
    traced: list[int] = field(default_factory=list)
    layers: list[int] = field(default_factory=list)
    earlier: list[int] = field(default_factory=list)
    forward: tuple[int, int] = (-1, -1)

    def sizes(self, traced_sizes: list[int]) -> list[int]:
        """Bytes of each storage, from the bytes of the traced ones."""
        return [traced_sizes[i] for i in self.traced]


class _Expander:
    def __init__(self, structure: Structure, runs: tuple[Run, ...]) -> None:
        self.structure = structure
        self.runs = runs
        self.out = Expanded()
        self.home: dict[int, tuple[int, int]] = {}  # traced storage -> (segment, ordinal)
        self.ids: dict[tuple[int, int], list[int]] = {}  # (segment, copy) -> ids by ordinal
        self.visited: dict[
            tuple[str, int, int], int
        ] = {}  # (direction, run, repetition) -> segment
        self.single: dict[int, int] = {}  # of what only the first block makes
        self.late = {position for position, _ in structure.late_frees}
        self._index()

    def _index(self) -> None:
        for number, segment in enumerate(self.structure.segments):
            made = 0
            for event in self.structure.events[segment.start : segment.end]:
                if event >= 0 and self.structure.names[event] != FIRST:
                    self.home[event] = (number, made)
                    made += 1
            if segment.run >= 0:
                self.visited[segment.direction, segment.run, segment.repetition] = number

    def skipped(self, segment: Segment) -> int:
        interior = segment.run >= 0 and segment.repetition == 1
        return self.runs[segment.run].skipped if interior else 0

    def play(self) -> Expanded:
        for number, segment in enumerate(self.structure.segments):
            if segment.start == self.structure.forward_end and self.out.forward[0] < 0:
                self.out.forward = (len(self.out.events), len(self.out.traced))
            for copy in range(self.skipped(segment) + 1):
                self._play_segment(number, segment, copy)
        return self.out

    def _play_segment(self, number: int, segment: Segment, copy: int) -> None:
        structure, out = self.structure, self.out
        mine: list[int] = []
        self.ids[number, copy] = mine
        for position in range(segment.start, segment.end):
            event = structure.events[position]
            if event >= 0:
                identity = self._add(event, segment, copy)
                if structure.names[event] == FIRST:
                    self.single[event] = identity
                else:
                    mine.append(identity)
                out.events.append(identity)
            elif ~event in structure.earlier:
                out.events.append(~self._add(~event, segment, copy))
                out.earlier.append(len(out.traced) - 1)
            elif position in self.late:
                home, ordinal = self.home[~event]
                for each in range(self.skipped(structure.segments[home]) + 1):
                    out.events.append(~self.ids[home, each][ordinal])
            else:
                out.events.append(~self._resolve(number, copy, ~event))

    def _add(self, storage: int, segment: Segment, copy: int) -> int:
        """The id of one more storage, a copy of a traced one."""
        structure, out = self.structure, self.out
        block = structure.labels[structure.labels_of[storage]].block
        layer = true_layer(structure, self.runs, segment, block, copy) if block >= 0 else -1
        out.traced.append(storage)
        out.layers.append(layer)
        return len(out.traced) - 1

    def _resolve(self, number: int, copy: int, storage: int) -> int:
        """The id of what a copy of segment `number` calls `storage`.

        Within a run the distance between the two repetitions is kept: what the traced interior
        repetition calls its predecessor's is, in every copy, its own predecessor's.
        """
        if storage in self.single:
            return self.single[storage]
        home, ordinal = self.home[storage]
        here, there = self.structure.segments[number], self.structure.segments[home]
        if home == number:
            return self.ids[number, copy][ordinal]
        if here.run == there.run >= 0 and not self.runs[here.run].skipped:
            return self.ids[home, 0][ordinal]
        if here.run != there.run or here.run < 0:
            return self.ids[home, self.skipped(there)][ordinal]
        true = true_repetition(self.runs[here.run], here, copy)
        true += there.repetition - here.repetition
        return self.ids[self._segment_of(there.direction, there.run, true)][ordinal]

    def _segment_of(self, direction: str, run: int, true: int) -> tuple[int, int]:
        """(segment, copy) of a true repetition of a run."""
        skipped = self.runs[run].skipped
        if true == 0:
            return self.visited[direction, run, 0], 0
        if true > 1 + skipped:
            return self.visited[direction, run, true - skipped], 0
        copy = 1 + skipped - true if direction.startswith("backward") else true - 1
        return self.visited[direction, run, 1], copy


def expand(structure: Structure, runs: tuple[Run, ...]) -> Expanded:
    """Every event of a micro-batch with runs of the given counts."""
    return _Expander(structure, runs).play()
