"""Seconds of the interleaved schedule for many setups at once: all ranks' turns of a wave as one array.

p ranks of v chunks, m micro-batches in rounds of p. A rank's turn r is its forward of slot r + a and its
backward of slot r, a = (v - 1) p + 2 (p - 1 - rank) forwards ahead. Put turn r of a rank into wave
r + p - 1 - rank: then what a forward or a backward waits for from a neighbour was made one wave before,
by the rank before or after it (the last and the first where chunks follow each other). Sends run beside
compute. A step of more rounds than are tried goes on evenly once a round makes every rank, and all that
is on its way, later by the same seconds.
Source: Narayanan et al. 2021 (arXiv:2104.04473), sec. 2.2; Megatron-Core 0.14, schedules.py.
Checked by: property/test_search_spans.py, against `timing/pipeline_time.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

#: Rounds after which a step is looked at for going on evenly.
_TRIAL_ROUNDS: Final = 3
#: Equal seconds: what sums of floats leave, relative.
_EQUAL: Final = 1e-12
#: Numbers of one array of all ranks: more lanes leave the processor's cache.
_AT_ONCE: Final = 8192


class Chunks(NamedTuple):
    """Chunks of an interleaved pipeline by class, chunks of a class taking the same.

    of: class of chunk q of rank r, [q][r]. forward, backward: seconds of each class, (classes, lanes).
    send: of a stream or a gradient between two chunks, (lanes,).
    """

    of: Sequence[Sequence[int]]
    forward: Any
    backward: Any
    send: Any

    def lanes(self, chosen: Any) -> Chunks:
        """Those of some lanes."""
        return Chunks(self.of, self.forward[:, chosen], self.backward[:, chosen], self.send[chosen])


def interleaved_s(chunks: Chunks, batches: Any) -> Any:
    """Seconds of the interleaved schedule, shape (lanes,); batches: multiples of the ranks, (lanes,).

    Checked by: property/test_search_spans.py.
    """
    import numpy as np

    ranks = len(chunks.of[0])
    rounds, span = batches // ranks, np.zeros(len(batches))
    width, trial = max(32, _AT_ONCE // ranks), _TRIAL_ROUNDS
    left = np.arange(len(span))
    while len(left):
        for few in np.unique(np.minimum(rounds[left], trial + 1)).tolist():
            all_own = left[np.minimum(rounds[left], trial + 1) == few]
            for start in range(0, len(all_own), width):
                own = all_own[start : start + width]
                span[own] = _span(chunks.lanes(own), min(few, trial), rounds[own])
        left = left[np.isnan(span[left])]
        trial *= 2
    return span


def _span(chunks: Chunks, tried: int, rounds: Any) -> Any:
    """Seconds of steps of at least as many rounds as are tried; nan where they do not go on evenly."""
    import numpy as np

    waves = _Waves(chunks, tried)
    waves.run()
    span = waves.free.max(axis=0)
    if (rounds == tried).all():
        return span
    (free, down, up), (free_2, down_2, up_2) = waves.seen
    a_round = free_2[0] - free[0]
    near = _EQUAL * free_2[0]
    even = np.ones(len(span), bool)
    for before, after in ((free, free_2), (down, down_2), (up, up_2)):
        even &= (np.abs(after - before - a_round) <= near).all(axis=0)
    return np.where(even, span + (rounds - tried) * a_round, np.nan)


class _Waves:
    """free: when each rank is; down[r + 1], up[r]: when what rank r made last has arrived."""

    def __init__(self, chunks: Chunks, rounds: int) -> None:
        import numpy as np

        self.v, self.p = len(chunks.of), len(chunks.of[0])
        self.plan = wave_plan(tuple(map(tuple, chunks.of)), rounds)
        self.tables, self.send = (chunks.forward, chunks.backward), chunks.send
        shape = (self.p, len(self.send))
        self.free, self.work = np.zeros(shape), np.zeros(shape)
        self.down, self.up = (np.zeros((self.p + 1, shape[1])) for _ in range(2))
        self.rows = (np.zeros(shape), np.zeros(shape))
        self.seen: list[Any] = []

    def run(self) -> None:
        """Go through the step. seen: the state a round apart, the last time while every turn is full."""
        p, down, up = self.p, self.down, self.up
        for forward, backward, is_looked_at in self.plan:
            if forward is not None:
                down[0] = down[p] if forward.wraps else 0.0
                self._turn(0, forward, down[forward.first : forward.end], down[1:])
            if backward is not None:
                up[p] = up[0] if backward.wraps else 0.0
                self._turn(1, backward, up[backward.first + 1 : backward.end + 1], up)
            if is_looked_at:
                self.seen.append((self.free.copy(), down[1:].copy(), up[:-1].copy()))

    def _turn(self, direction: int, turn: Turn, came: Any, gone: Any) -> None:
        """A forward or a backward of neighbouring ranks."""
        import numpy as np

        rows, table = self.rows[direction], self.tables[direction]
        for rank, kind in turn.changes:
            rows[rank] = table[kind]
        own = slice(turn.first, turn.end)
        free, work = self.free[own], self.work[own]
        np.maximum(free, came, out=work)
        np.add(work, rows[own], out=free)
        np.add(free, self.send, out=gone[own])


class Turn(NamedTuple):
    """Ranks first to end compute. wraps: the first (backward: the last) of the model's chunks a rank has
    waits for the other end of the ranks. changes: (rank, class) whose seconds are others than before."""

    first: int
    end: int
    wraps: bool
    changes: tuple[tuple[int, int], ...]


Wave = tuple[Turn | None, Turn | None, bool]


@lru_cache(maxsize=64)
def wave_plan(of: tuple[tuple[int, ...], ...], rounds: int) -> tuple[Wave, ...]:
    """Every wave of a step of so many rounds: forwards, backwards, whether it is looked at."""
    v, p = len(of), len(of[0])
    slots, a_round = rounds * p * v, p * v
    last = slots - (v + 1) * p
    known: tuple[list[int], list[int]] = ([-1] * p, [-1] * p)
    waves: list[Wave] = []
    for wave in range(1 - a_round, slots + p - 1):
        slot = wave + a_round - 1  # of rank 0: each rank's forward is one less
        first, end = max(0, slot + 1 - slots), min(p, slot + 1)
        forward = None
        if first < end:
            chunks = [(slot - rank) % a_round // p for rank in range(first, end)]
            changes = _changes(of, chunks, first, known[0])
            forward = Turn(first, end, slot % a_round >= p, changes)
        slot = wave - p + 1  # of rank 0: each rank's backward is one more
        begin, stop = max(0, -slot), min(p, slots - slot)
        backward = None
        if begin < stop:
            chunks = [v - 1 - (slot + rank) % a_round // p for rank in range(begin, stop)]
            changes = _changes(of, chunks, begin, known[1])
            backward = Turn(begin, stop, chunks[-1] != v - 1, changes)
        waves.append((forward, backward, wave in (last - a_round, last)))
    return tuple(waves)


def _changes(
    of: tuple[tuple[int, ...], ...], chunks: list[int], first: int, known: list[int]
) -> tuple[tuple[int, int], ...]:
    """Ranks whose chunk is of another class than their last, and that class."""
    found = []
    for rank, chunk in enumerate(chunks, first):
        kind = of[chunk][rank]
        if known[rank] != kind:
            found.append((rank, kind))
            known[rank] = kind
    return tuple(found)
