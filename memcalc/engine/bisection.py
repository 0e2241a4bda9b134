"""Where a run of numbers that hold ends: doubling steps, then halves.

What is asked of each number is a whole estimate, so few are asked. Checked by: unit/test_solve.py,
unit/test_serving_limits.py.
"""

from __future__ import annotations

from collections.abc import Callable


def last_holding(holds: Callable[[int], bool], start: int, end: int) -> int | None:
    """The last number below `end` of the run that holds from `start` on; None where `start` does not."""
    if not holds(start):
        return None
    low, step = start, 1
    while low + step < end and holds(low + step):
        low, step = low + step, step * 2
    high = min(low + step, end)
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return low
