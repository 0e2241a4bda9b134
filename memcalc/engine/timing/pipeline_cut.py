"""A schedule's program in three pieces: what comes first, a period that repeats, what comes last.

Two lists of a schedule that differ by a period's micro-batches say where a period goes in. The pieces can
be timed one after the other, the middle one as often as a step has periods, for it is checked that
nothing waits for a later piece, and nothing in a period or after it for anything before the period
before. Pieces are built once a schedule (cached), however many micro-batches a step has.
Checked by: unit/test_pipeline_time.py, property/test_pipeline_time.py, against whole programs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from memcalc.engine.parallel.pipeline.actions import Action, Pipe
from memcalc.engine.timing.pipeline_order import (
    Program,
    Row,
    durations_of,
    orders_of,
    program_of,
)

#: Micro-batches a rank of the shortest program that has two periods in it: tried one after the other.
_TRIALS = (2, 3, 4, 6, 9)
#: Schedules whose chunks change with every round of as many micro-batches as ranks; a round is a period.
_IN_ROUNDS = frozenset({"interleaved", "zb-h1"})


class Pieces(NamedTuple):
    """Rows as a program's; `source` counts from 1 in what was timed before, piece by piece.

    pipe: of head and tail alone. period: micro-batches of a body. head: all before the cut, its sources
    in itself. window: the head's rows that are its last period, in the order of the body. body: sources
    up to its length in the period before it, then in itself; before: the row before each on its rank,
    in the same way. tail: sources in the last period, then in itself. counts: how often each duration is
    in the body, per rank.
    """

    pipe: Pipe
    period: int
    head: tuple[Row, ...]
    window: tuple[int, ...]
    body: tuple[Row, ...]
    before: tuple[int, ...]
    tail: tuple[Row, ...]
    counts: tuple[Mapping[int, int], ...]


@lru_cache(maxsize=64)
def pieces_of(schedule: str, pp: int, vpp: int) -> Pieces | None:
    """The pieces of a named schedule; None for one with no single place for more micro-batches."""
    period = pp if schedule in _IN_ROUNDS else 1
    for trial in _TRIALS[1:] if vpp > 1 else _TRIALS:
        found = _pieces(schedule, Pipe(pp, vpp, trial * pp), period)
        if found is not None:
            return found
    return None


_Place = tuple[int, int]  # rank, position in its list


def _pieces(schedule: str, pipe: Pipe, period: int) -> Pieces | None:
    longer = pipe._replace(batches=pipe.batches + period)
    less, more = _marked(schedule, pipe), _marked(schedule, longer)
    at = [_common(a, b) for a, b in zip(less, more, strict=True)]
    lengths = [len(b) - len(a) for a, b in zip(less, more, strict=True)]
    ends = [place + length for place, length in zip(at, lengths, strict=True)]
    for a, b, place, end in zip(less, more, at, ends, strict=True):
        length = end - place
        if place < length or b[end:] != _later(a[place:], period):
            return None
        if b[place:end] != _later(b[place - length : place], period):
            return None
    short, whole = program_of(schedule, pipe), program_of(schedule, longer)
    places, all_places = _places(short), _places(whole)
    if not _is_cut(short, places, at, lengths) or not _is_cut(whole, all_places, ends, lengths):
        return None
    head = [row for row, (rank, i) in places.items() if i < at[rank]]
    tail = [row for row, (rank, i) in places.items() if i >= at[rank]]
    body = [row for row, (rank, i) in all_places.items() if at[rank] <= i < ends[rank]]
    offsets = [(all_places[row][0], all_places[row][1] - at[all_places[row][0]]) for row in body]
    window = [short.of_rank[rank][at[rank] - lengths[rank] + i] for rank, i in offsets]
    known = [whole.of_rank[rank][at[rank] - lengths[rank] + i] for rank, i in offsets]
    in_head = {row: i for i, row in enumerate([0, *head])}
    numbers = {row: i for i, row in enumerate([0, *known, *body])}
    before = [
        numbers[whole.of_rank[rank][at[rank] + i - 1]] if at[rank] + i else 0 for rank, i in offsets
    ]
    return Pieces(
        pipe,
        period,
        _renumbered(short, [0], head),
        tuple(in_head[row] for row in window),
        _renumbered(whole, [0, *known], body),
        tuple(before),
        _renumbered(short, [0, *window], tail),
        tuple(
            Counter(number for number, _ in own[place:end])
            for own, place, end in zip(more, at, ends, strict=True)
        ),
    )


def _renumbered(program: Program, known: Sequence[int], rows: Sequence[int]) -> tuple[Row, ...]:
    """Some rows of a program, their sources by place in what is known and themselves."""
    numbers = {row: i for i, row in enumerate([*known, *rows])}
    chosen = (program.rows[row] for row in rows)
    return tuple((rank, number, numbers[source], made) for rank, number, source, made in chosen)


def _places(program: Program) -> dict[int, _Place]:
    """Rank and position of each row, in the order of the rows."""
    found = {
        row: (rank, i) for rank, own in enumerate(program.of_rank) for i, row in enumerate(own)
    }
    return dict(sorted(found.items()))


def _is_cut(
    program: Program, places: Mapping[int, _Place], at: Sequence[int], lengths: Sequence[int]
) -> bool:
    """Whether nothing before the cuts waits for what is after them, and that for nothing earlier than
    a period before them; the same of the cuts a period before.
    """
    for row, (rank, position) in places.items():
        source = program.rows[row][2]
        if not source:
            continue
        other, made = places[source]
        for back in (0, 1):
            cut, behind = at[rank] - back * lengths[rank], at[other] - back * lengths[other]
            if position < cut and made >= behind:
                return False
            if position >= cut and made < behind - lengths[other]:
                return False
    return True


_Marked = tuple[int, Action]


def _marked(schedule: str, pipe: Pipe) -> list[list[_Marked]]:
    return [[*zip(durations_of(one), one, strict=True)] for one in orders_of(schedule, pipe)]


def _later(actions: Sequence[_Marked], batches: int) -> list[_Marked]:
    return [(number, Action(kind, chunk, m + batches)) for number, (kind, chunk, m) in actions]


def _common(a: Sequence[_Marked], b: Sequence[_Marked]) -> int:
    """How long two lists are the same."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((at for at, (one, other) in pairs if one != other), len(a))
