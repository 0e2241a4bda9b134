"""Rows of a pipeline rank: what may be alive before a forward or a backward, as counts.

The instructions of a rank (pipeline_program.py) are walked once with counts for bytes. Before an action
there are so many micro-batches of each class of chunk in flight, so many streams that others hold, and a
few bytes of stubs and losses. Rows that another one exceeds in everything are dropped: a handful is left
of any schedule, and a step's peak is the most of them. More micro-batches than a schedule needs to come
to its steady state make no new row.
Checked by: property/test_search_grid.py, against `pipeline_memory.stage_memory`.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from typing import NamedTuple

from memcalc.engine.parallel.pipeline.actions import Action, Pipe
from memcalc.engine.parallel.pipeline.pipeline_program import Item, Take
from memcalc.engine.parallel.pipeline.pipeline_rules import rules_of_code
from memcalc.engine.parallel.pipeline.schedules import most_in_flight


class Row(NamedTuple):
    """Before an action of a chunk's class: in_flight micro-batches by class, and what others hold.

    streams: tensors as large as the stream, less those that were sent of what is in flight; stubs,
    losses: of a few bytes.
    """

    kind: str
    chunk: int
    in_flight: tuple[int, ...]
    streams: int
    stubs: int
    losses: int


class StageRows(NamedTuple):
    """Rows of a rank; most: micro-batches in flight of the model's first and of its last chunk."""

    rows: tuple[Row, ...]
    most_first: int
    most_last: int


@lru_cache(maxsize=4096)
def stage_rows(
    code: str, schedule: str, pipe: Pipe, rank: int, classes: tuple[int, ...]
) -> StageRows:
    """The rows of a rank of a schedule that a stack's code runs; classes: of every chunk of the model."""
    if pipe.pp == 1:
        return _alone()
    step = rules_of_code(code).step(schedule, pipe, rank)
    chunks = len(classes)
    in_flight = [0] * (max(classes) + 1)
    held = Counter(_kind(item, chunks) for item in step.standing)
    rows: set[Row] = set()
    for one in step.instructions:
        if isinstance(one, Action):
            of = classes[one.chunk]
            left = (held["stream"], held["stub"], held["loss"])
            rows.add(Row(one.kind, of, tuple(in_flight), *left))
            in_flight[of] += 1 if one.kind == "F" else -1
            if one.kind == "B":  # its stream and its gradient go later, by instructions
                held["stream"] += (one.chunk > 0) + (one.chunk < chunks - 1)
                held["loss"] += one.chunk == chunks - 1
        else:
            held[_kind(one.item, chunks)] += 1 if isinstance(one, Take) else -1
    most = most_in_flight([one for one in step.instructions if isinstance(one, Action)])
    return StageRows(_undominated(rows), most.get(0, 0), most.get(chunks - 1, 0))


def enough(schedule: str, pipe: Pipe, rank: int) -> Pipe:
    """The pipe with as many micro-batches as show every row of a rank in longer ones."""
    if schedule != "interleaved":
        return pipe._replace(batches=min(pipe.batches, pipe.pp + 2))
    rounds = 2 if rank in (0, pipe.pp - 1) else 4
    return pipe._replace(batches=min(pipe.batches, rounds * pipe.pp))


def _alone() -> StageRows:
    """One stage: forward with nothing in flight, backward with one."""
    rows = (Row("F", 0, (0,), 0, 0, 0), Row("B", 0, (1,), 0, 0, 0))
    return StageRows(rows, 1, 0)


def _kind(item: Item, chunks: int) -> str:
    if item.kind == "stub":
        return "stub"
    return "loss" if item.kind == "stream" and item.chunk == chunks - 1 else "stream"


def _undominated(rows: set[Row]) -> tuple[Row, ...]:
    """Rows that no other one of the same action reaches in everything."""
    kept: list[Row] = []
    for row in sorted(rows, key=lambda one: (sum(one.in_flight), one[3:]), reverse=True):
        if not any(_exceeds(other, row) for other in kept):
            kept.append(row)
    return tuple(kept)


def _exceeds(one: Row, other: Row) -> bool:
    """Whether a row has at least as much before the same action.

    A micro-batch in flight keeps no less than a stream: every block's input, if not more.
    """
    if one[:2] != other[:2]:
        return False
    more = [a - b for a, b in zip(one.in_flight, other.in_flight, strict=True)]
    streams = sum(more) + one.streams - other.streams
    small = one.stubs >= other.stubs and one.losses >= other.losses
    return min(more) >= 0 and (streams > 0 or (streams == 0 and small))
