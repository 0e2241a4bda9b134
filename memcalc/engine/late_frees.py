"""Late frees: what every copy of a repeated block makes, and something outside the blocks frees.

Autocast's weight casts are such: made in every block, released together at the end of forward. What the
last copy alone leaves, such as a parameter gathered for the next block of backward, is not: the block
before frees its own. The two differ in what becomes of the counterpart in a middle repetition, where one
like the interior is traced beside it.
Checked by: unit/test_structure.py, oracle/test_fsdp1.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memcalc.engine.structure import Segment

#: Repetitions that must be traced for one like the interior to be among them.
_ENOUGH = 4
#: Traced repetitions of which one may stand for more.
_INTERIOR = 3


def late_frees(events: Sequence[int], segments: Sequence[Segment]) -> tuple[tuple[int, int], ...]:
    """(event, run) of frees, outside a run, of what each of its interior repetitions made."""
    interior: dict[int, tuple[int, int | None]] = {}  # storage -> run, its counterpart
    freed_in: dict[int, int] = {}
    made = {
        (one.direction, one.run, one.repetition): [e for e in events[one.start : one.end] if e >= 0]
        for one in segments
        if one.run >= 0
    }
    for (direction, run, repetition), storages in made.items():
        if repetition == 1:
            traced = max(other for way, of, other in made if (way, of) == (direction, run)) + 1
            following = made[direction, run, traced // 2] if traced >= _ENOUGH else []
            counterparts = [*following, *[None] * len(storages)]
            for storage, counterpart in zip(storages, counterparts, strict=False):
                interior[storage] = (run, counterpart)
    frees: list[tuple[int, int]] = []
    for segment in segments:
        for position in range(segment.start, segment.end):
            if events[position] < 0:
                freed_in[~events[position]] = segment.run
                if interior.get(~events[position], (segment.run, None))[0] != segment.run:
                    frees.append((position, ~events[position]))
    late = []
    for position, storage in frees:
        run, counterpart = interior[storage]
        if counterpart is None or freed_in.get(counterpart) != run:
            late.append((position, run))
    return tuple(late)


def once(
    events: tuple[int, ...], segments: tuple[Segment, ...], counts: Sequence[int]
) -> tuple[tuple[int, ...], tuple[Segment, ...]]:
    """Events and segments with frees that happen once moved out of the repetition that stands for many.

    A rotary table that the first block of a frozen model never reads is freed by the second, in backward;
    its free is noted where the first block's backward begins. counts: traced repetitions of each run.
    """
    made_before = {
        event
        for one in segments
        if one.run < 0
        for event in events[one.start : one.end]
        if event >= 0
    }
    moved = list(segments)
    written = list(events)
    for number, one in enumerate(segments[:-1]):
        if not (
            one.direction == "backward" and one.repetition == 1 and counts[one.run] >= _INTERIOR
        ):
            continue
        inside = written[one.start : one.end]
        late = [event for event in inside if event < 0 and ~event in made_before]
        if not late:
            continue
        kept = [event for event in inside if event not in late]
        written[one.start : one.end] = kept + late
        edge = one.end - len(late)
        moved[number] = moved[number]._replace(end=edge)
        moved[number + 1] = moved[number + 1]._replace(start=edge)
    return tuple(written), tuple(moved)
