"""Write out every event of every block from a structure that holds three repetitions of each run.

The k-th allocation of an interior repetition is the counterpart of the k-th allocation of its
neighbours; a reference to something the previous repetition made is moved along with the copy.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from memcalc.engine.structure import Run, Segment, Structure
from memcalc.engine.timeline import true_layer


@dataclass(slots=True)
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
        self.previous: dict[int, int] = {}  # interior segment -> the repetition visited before it
        self.late = {position for position, _ in structure.late_frees}
        self._index()

    def _index(self) -> None:
        visited: dict[tuple[str, int], int] = {}
        for number, segment in enumerate(self.structure.segments):
            made = 0
            for event in self.structure.events[segment.start : segment.end]:
                if event >= 0:
                    self.home[event] = (number, made)
                    made += 1
            if segment.run >= 0:
                key = (segment.direction, segment.run)
                if segment.repetition == 1 and key in visited:
                    self.previous[number] = visited[key]
                visited[key] = number

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
        """The id of what a copy of segment `number` calls `storage`."""
        home, ordinal = self.home[storage]
        segments = self.structure.segments
        here, there = segments[number], segments[home]
        if home == number:
            return self.ids[number, copy][ordinal]
        skipped = self.skipped(there)
        if skipped and here.run == there.run and here.direction != there.direction:
            # backward walks the interior copies from the last to the first
            of_copy = skipped - copy if here.repetition == 1 else skipped
            return self.ids[home, of_copy][ordinal]
        if copy and self.previous.get(number) == home:
            return self.ids[number, copy - 1][ordinal]
        return self.ids[home, skipped][ordinal]


def expand(structure: Structure, runs: tuple[Run, ...]) -> Expanded:
    """Every event of a micro-batch with runs of the given counts."""
    return _Expander(structure, runs).play()
