"""Seconds of a program of actions, and of steps of any number of micro-batches from its pieces.

`timed` goes through a program once. For a named schedule `timed_in_pieces` times the head, period after
period, and the tail (pipeline_cut.py). Every start is a maximum of two sums: when its rank is free, and
when what it waits for is there. If each start of the last c periods is later than c periods before by as
much as what it was bound by, then it goes on like that, exactly, until at some action the other of the
two catches up; how many periods that takes is a quotient, so they are added at once. When all go at one
pace nothing ever catches up, and a step of a million micro-batches costs a few periods.

GPipe's forwards are all over before its backwards begin, so that there is no one place for a period; but
each micro-batch more makes it longer by at most its longest forward and its longest backward, and once
it does, always.
Checked by: unit/test_pipeline_time.py, property/test_pipeline_time.py, against whole programs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from itertools import pairwise
from typing import NamedTuple

from memcalc.engine.parallel.pipeline.actions import Pipe
from memcalc.engine.timing.arith import Num, maximum
from memcalc.engine.timing.pipeline_cut import Pieces, pieces_of
from memcalc.engine.timing.pipeline_order import Program, Row, program_of

#: Equal seconds: what sums of floats leave, relative.
_EQUAL = 1e-9
#: Micro-batches a rank from which a step is timed in pieces; below, a whole program is as fast.
_LONG = 6
#: Shorter steps of GPipe tried, in micro-batches a rank.
_GPIPE_TRIALS = (3, 24, 192)


class Durations(NamedTuple):
    """Seconds by number of a duration (pipeline_order.duration), and 0 at the end.

    work: computing. occupied: how long the rank is taken. lag: from the start until what is made has
    arrived at the rank that waits for it. plain: numbers, not arrays.
    """

    work: Sequence[Num]
    occupied: Sequence[Num]
    lag: Sequence[Num]
    plain: bool


class Timed(NamedTuple):
    """Seconds of a step: until the last rank is done, and of each rank's own work."""

    span_s: Num
    busy_s: tuple[Num, ...]


def run(rows: Iterable[Row], times: Durations, starts: list[Num], free: list[Num]) -> None:
    """Append the start of each row to `starts`, and move on when each rank is free.

    starts: of the rows that these may wait for, after 0 for nothing.
    """
    occupied, lag, add = times.occupied, times.lag, starts.append
    if not times.plain:
        for rank, number, source, made in rows:
            add(maximum(free[rank], starts[source] + lag[made]))
            free[rank] = starts[-1] + occupied[number]
        return
    for rank, number, source, made in rows:
        start, arrival = free[rank], starts[source] + lag[made]
        if arrival > start:
            start = arrival
        add(start)
        free[rank] = start + occupied[number]


def starts_of(program: Program, times: Durations) -> tuple[list[Num], list[Num]]:
    """The start of each row of a program (row 0: 0), and when each rank is free at last."""
    starts: list[Num] = [0]
    free: list[Num] = [0] * len(program.of_rank)
    run(program.rows[1:], times, starts, free)
    return starts, free


def timed(program: Program, times: Durations) -> Timed:
    """A program from start to end."""
    _, free = starts_of(program, times)
    return Timed(latest(free), _busy(program.counts, times))


def latest(seconds: Sequence[Num]) -> Num:
    """The largest, element by element where they are arrays."""
    return reduce(maximum, seconds)


def timed_in_pieces(schedule: str, pipe: Pipe, times: Durations) -> Timed | None:
    """A step of a named schedule from its pieces; None where it has none or is too short for them."""
    if not times.plain or pipe.batches < _LONG * pipe.pp:
        return None
    if schedule == "gpipe":
        return _timed_gpipe(pipe, times)
    pieces = pieces_of(schedule, pipe.pp, pipe.vpp)
    if pieces is None:
        return None
    periods, rest = divmod(pipe.batches - pieces.pipe.batches, pieces.period)
    if rest or periods < 0:
        return None
    starts: list[Num] = [0]
    free: list[Num] = [0] * pipe.pp
    run(pieces.head, times, starts, free)
    window = [starts[row] for row in pieces.window]
    starts = [0, *_periods(pieces, times, window, free, periods)]
    run(pieces.tail, times, starts, free)
    short = program_of(schedule, pieces.pipe)
    return Timed(latest(free), _more(short.counts, pieces.counts, periods, times))


def _more(
    counts: Sequence[Mapping[int, int]],
    period: Sequence[Mapping[int, int]],
    periods: int,
    times: Durations,
) -> tuple[Num, ...]:
    """Work of each rank with so many periods more."""
    base, each = _busy(counts, times), _busy(period, times)
    return tuple(a + periods * b for a, b in zip(base, each, strict=True))


def _busy(counts: Sequence[Mapping[int, int]], times: Durations) -> tuple[Num, ...]:
    return tuple(sum(times.work[number] * n for number, n in own.items()) for own in counts)


def _periods(
    pieces: Pieces, times: Durations, window: list[Num], free: list[Num], periods: int
) -> list[Num]:
    """Starts of the last of so many periods after a window; `free` moves on with them."""
    history = [window]
    longest = 3 * len(free) + 2  # of the patterns looked for, in periods
    while periods > 0:
        starts = [0, *history[-1]]
        run(pieces.body, times, starts, free)
        history = [*history[-2 * longest :], starts[len(window) + 1 :]]
        periods -= 1
        cycle = _cycle(history, longest)
        if not cycle or periods < cycle:
            continue
        shifts = [a - b for a, b in zip(history[-1], history[-1 - cycle], strict=True)]
        goes_on = _cycles(pieces, times, history[-1 - cycle :], shifts)
        cycles = min(goes_on, periods // cycle)
        if cycles > 0:
            history = [[a + cycles * b for a, b in zip(history[-1], shifts, strict=True)]]
            for (rank, number, _, _), start in zip(pieces.body, history[0], strict=True):
                free[rank] = start + times.occupied[number]
            periods -= cycles * cycle
    return history[-1]


def _cycle(history: Sequence[Sequence[Num]], most: int) -> int:
    """Periods of the shortest pattern that the last ones seem to repeat; 0: none."""
    last = history[-1]
    for cycle in range(1, min(most, (len(history) - 1) // 2) + 1):
        triples = zip(last, history[-1 - cycle], history[-1 - 2 * cycle], strict=True)
        if all(abs(a - b - (b - c)) <= _EQUAL * (a - b) for a, b, c in triples):
            return cycle
    return 0


def _cycles(
    pieces: Pieces, times: Durations, history: Sequence[Sequence[Num]], shifts: Sequence[Num]
) -> int:
    """For how many cycles more each start goes on being later by its shift: until what did not bind an
    action catches up with what did. history: a cycle's periods after the one before; shifts: of the last
    over the first of these.
    """
    body, n, moved, most = pieces.body, len(pieces.body), shifts, 1 << 62
    for earlier, period in pairwise(history):
        starts, moves = [0, *earlier, *period], [0, *moved]
        for (_, _, source, made), before in zip(body, pieces.before, strict=True):
            free = starts[before] + times.occupied[body[(before - 1) % n][1]]
            arrival = starts[source] + times.lag[made]
            late = arrival > free
            move = moves[source if late else before]
            catches_up = moves[before if late else source] - move
            if catches_up > _EQUAL * move:
                most = min(most, int(abs(arrival - free) // catches_up))
            moves.append(move)
        moved = moves[n + 1 :]
    as_before = all(abs(a - b) <= _EQUAL * a for a, b in zip(shifts, moved, strict=True))
    return most if as_before else 0


def _timed_gpipe(pipe: Pipe, times: Durations) -> Timed | None:
    """A step of GPipe from a shorter one; None where that does not grow steadily yet."""
    for trial in _GPIPE_TRIALS:
        short = pipe._replace(batches=trial * pipe.pp)
        if short.batches + 1 > pipe.batches:
            return None
        less, more = (
            program_of("gpipe", pipe._replace(batches=short.batches + one)) for one in (0, 1)
        )
        counts = tuple(
            {key: n for key, n in (Counter(b) - Counter(a)).items() if n}
            for a, b in zip(less.counts, more.counts, strict=True)
        )
        seconds = sum(max(times.occupied[sorted(own)[phase]] for own in counts) for phase in (0, 1))
        base = timed(less, times).span_s
        if abs(timed(more, times).span_s - base - seconds) <= _EQUAL * seconds:
            periods = pipe.batches - short.batches
            return Timed(base + periods * seconds, _more(less.counts, counts, periods, times))
    return None
