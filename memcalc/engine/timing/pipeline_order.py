"""Actions of all ranks in one order in which each follows what it waits for: built once, timed often.

Which action waits for which is decided by a schedule's lists alone, not by seconds. So the lists are
flattened once per shape of a pipeline (`program_of`, cached) into rows that a single loop can time
(pipeline_time.py). What an action waits for:

    F   of chunk c: the forward of chunk c - 1 of that micro-batch
    B, I of chunk c: the backward (B or I) of chunk c + 1 of that micro-batch, and its own forward
    W   its own I

and always the action before it on its rank. Not decided here: how long anything takes.
Checked by: unit/test_pipeline_time.py, property/test_pipeline_time.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from memcalc.engine.parallel.pipeline.actions import Action, Pipe
from memcalc.engine.parallel.pipeline.schedules import rank_actions
from memcalc.errors import ConfigError

#: What the times of a chunk are told apart by: its first forward and its last backward may be longer.
KINDS = ("F", "B", "I", "W", "first F", "last B", "last W")
_NUMBERS = {kind: number for number, kind in enumerate(KINDS)}
#: Row: rank, number of its duration, row it waits for, number of that one's duration.
Row = tuple[int, int, int, int]


class Program(NamedTuple):
    """rows: every action, each after what it waits for (row 0 is nothing). of_rank: a rank's rows, in
    its order. ranks: of each chunk. counts: per rank, how often each duration is in it.
    """

    rows: tuple[Row, ...]
    of_rank: tuple[tuple[int, ...], ...]
    ranks: tuple[int, ...]
    counts: tuple[Mapping[int, int], ...]


def duration(chunk: int, kind: str) -> int:
    """The number of a chunk's duration."""
    return chunk * len(KINDS) + _NUMBERS[kind]


@lru_cache(maxsize=48)
def program_of(schedule: str, pipe: Pipe) -> Program:
    """The program of a named schedule, the same for every stack that runs it."""
    return flattened(orders_of(schedule, pipe), pipe.pp * pipe.vpp)


def orders_of(schedule: str, pipe: Pipe) -> list[tuple[Action, ...]]:
    """The actions of every rank, in order."""
    return [rank_actions(schedule, pipe, rank) for rank in range(pipe.pp)]


def flattened(orders: Sequence[Sequence[Action]], chunks: int) -> Program:
    """One order for the lists of all ranks. Raises ConfigError where they wait for each other."""
    ranks = _ranks(orders, chunks)
    marked = [durations_of(actions) for actions in orders]
    rows: list[Row] = [(0, -1, 0, -1)]
    of_rank: list[list[int]] = [[] for _ in orders]
    done = {-1: 0}
    waiting: dict[int, int] = {}
    ready = [*reversed(range(len(orders)))]
    while ready:
        rank = ready.pop()
        own, actions, kinds = of_rank[rank], orders[rank], marked[rank]
        for at in range(len(own), len(actions)):
            made, other, before = _keys(actions[at], chunks)
            if other not in done or before not in done:
                waiting[before if other in done else other] = rank
                break
            source = done[other]
            if rows[source][0] == rank:  # made before on this rank, which is busy until then
                source = 0
            own.append(len(rows))
            done[made] = len(rows)
            rows.append((rank, kinds[at], source, rows[source][1]))
            if made in waiting:
                ready.append(waiting.pop(made))
    if waiting:
        rank = min(waiting.values())
        raise ConfigError(
            f"orders: rank {rank} never gets what {orders[rank][len(of_rank[rank])]} needs; rule: "
            "each action after what it waits for"
        )
    counts = tuple(Counter(kinds) for kinds in marked)
    return Program(tuple(rows), tuple(map(tuple, of_rank)), ranks, counts)


def _keys(action: Action, chunks: int) -> tuple[int, int, int]:
    """What an action makes, and the two things it needs (-1: nothing): the neighbour's, its own.

    Of a chunk's micro-batch: 3 n is its stream, 3 n + 1 its gradient, 3 n + 2 its weights' gradients.
    """
    kind, chunk, batch = action
    key = 3 * (batch * chunks + chunk)
    if kind == "F":
        return key, key - 3 if chunk else -1, -1
    if kind == "W":
        return key + 2, -1, key + 1
    return key + 1, key + 4 if chunk + 1 < chunks else -1, key


def _ranks(orders: Sequence[Sequence[Action]], chunks: int) -> tuple[int, ...]:
    """The rank of each chunk. Raises ConfigError for a chunk that no rank, or more than one, runs."""
    held = [{action[1] for action in actions} for actions in orders]
    found = [[rank for rank, own in enumerate(held) if chunk in own] for chunk in range(chunks)]
    for chunk, ranks in enumerate(found):
        if len(ranks) != 1:
            raise ConfigError(f"orders: chunk {chunk} is run by ranks {ranks}; rule: by one rank")
    return tuple(ranks[0] for ranks in found)


def durations_of(actions: Sequence[Action]) -> list[int]:
    """Each action's duration; a chunk's first forward and last gradients of weights have their own."""
    kinds = [chunk * len(KINDS) + _NUMBERS[kind] for kind, chunk, _ in actions]
    seen: set[int] = set()
    for at, (kind, chunk, _) in enumerate(actions):
        if kind == "F" and chunk not in seen:
            seen.add(chunk)
            kinds[at] = duration(chunk, "first F")
    seen.clear()
    for at in reversed(range(len(actions))):
        kind, chunk, _ = actions[at]
        if kind in "BW" and chunk not in seen:
            seen.add(chunk)
            kinds[at] = duration(chunk, f"last {kind}")
    return kinds
