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
