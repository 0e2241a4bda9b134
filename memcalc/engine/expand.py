"""Write out every event of every block from a structure that holds three repetitions of each run.

The k-th allocation of an interior repetition is the counterpart of the k-th allocation of its
neighbours; a reference to something the previous repetition made is moved along with the copy.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from memcalc.engine.structure import Run, Segment, Structure
from memcalc.engine.timeline import true_layer


@dataclass(eq=False)
class Expanded:
    """All events: i >= 0 allocates storage i, ~i frees it; traced[i] is the storage it copies.

    layers[i] is the true layer of the allocation, -1 outside the blocks.
    """

    events: list[int] = field(default_factory=list)
    traced: list[int] = field(default_factory=list)
    layers: list[int] = field(default_factory=list)

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
        self.late = {position for position, _ in structure.late_frees}
        self._index()

    def _index(self) -> None:
        for number, segment in enumerate(self.structure.segments):
            made = 0
            for event in self.structure.events[segment.start : segment.end]:
                if event >= 0:
                    self.home[event] = (number, made)
                    made += 1
            if segment.run >= 0:
                self.visited[segment.direction, segment.run, segment.repetition] = number

    def skipped(self, segment: Segment) -> int:
        interior = segment.run >= 0 and segment.repetition == 1
        return self.runs[segment.run].skipped if interior else 0

    def play(self) -> Expanded:
        for number, segment in enumerate(self.structure.segments):
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
                identity = len(out.traced)
                out.traced.append(event)
                block = structure.labels[structure.labels_of[event]].block
                out.layers.append(
                    true_layer(structure, self.runs, segment, block, copy) if block >= 0 else -1
                )
                mine.append(identity)
                out.events.append(identity)
            elif position in self.late:
                home, ordinal = self.home[~event]
                for each in range(self.skipped(structure.segments[home]) + 1):
                    out.events.append(~self.ids[home, each][ordinal])
            else:
                out.events.append(~self._resolve(number, copy, ~event))

    def _resolve(self, number: int, copy: int, storage: int) -> int:
        """The id of what a copy of segment `number` calls `storage`.

        Within a run the distance between the two repetitions is kept: what the traced interior
        repetition calls its predecessor's is, in every copy, its own predecessor's.
        """
        home, ordinal = self.home[storage]
        here, there = self.structure.segments[number], self.structure.segments[home]
        if home == number:
            return self.ids[number, copy][ordinal]
        if here.run != there.run or here.run < 0:
            return self.ids[home, self.skipped(there)][ordinal]
        true = self._true_repetition(here, copy) - (here.repetition - there.repetition)
        return self.ids[self._segment_of(there.direction, there.run, true)][ordinal]

    def _true_repetition(self, segment: Segment, copy: int) -> int:
        run = self.runs[segment.run]
        if segment.repetition == 1 and run.skipped:
            return 1 + copy if segment.direction == "forward" else run.count - 2 - copy
        if segment.repetition == run.traced - 1:
            return run.count - 1
        return segment.repetition

    def _segment_of(self, direction: str, run: int, true: int) -> tuple[int, int]:
        """(segment, copy) of a true repetition of a run."""
        count, skipped = self.runs[run].count, self.runs[run].skipped
        if true == count - 1:
            return self.visited[direction, run, self.runs[run].traced - 1], 0
        if not skipped or true == 0:
            return self.visited[direction, run, true], 0
        copy = true - 1 if direction == "forward" else count - 2 - true
        return self.visited[direction, run, 1], copy


def expand(structure: Structure, runs: tuple[Run, ...]) -> Expanded:
    """Every event of a micro-batch with runs of the given counts."""
    return _Expander(structure, runs).play()
