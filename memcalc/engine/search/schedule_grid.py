"""Seconds of schedules over rows and numbers of blocks computed again, few of them timed.

A step's seconds are the longest path through its actions: a maximum of sums, so convex in seconds that grow
evenly with k, the blocks computed again. Between two numbers at which no chunk runs out of blocks they do
grow evenly; where the two ends and one number between lie on a line, all between do. So only those are
timed, and rows that bend in full. Checked by: property/test_search_spans.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from memcalc.engine.search.chunk_sums import ChunkTimes
from memcalc.engine.search.spans import one_f_one_b_s
from memcalc.engine.search.splits import Cut
from memcalc.engine.search.waves import Chunks, interleaved_s

#: How straight a line is, relative.
_EQUAL: Final = 1e-11


def span_s(times: Sequence[ChunkTimes], send: Any, batches: Any, cut: Cut, ends: list[int]) -> Any:
    """Seconds of a pipeline's schedule, shape (rows, K).

    times: of each class of chunk, (rows, K). send: between two stages, (rows,). batches: (rows,). ends:
    numbers of blocks computed again between which seconds grow evenly (splits.breaks_of), the last K - 1.
    """
    import numpy as np

    rows, columns = len(batches), ends[-1] + 1
    forward, backward = (
        np.array([np.broadcast_to(getattr(one, name), (rows, columns)) for one in times])
        for name in ("forward_s", "backward_s")
    )
    found = np.full((rows, columns), np.nan)

    def fill(chosen: Any, columns_of: Sequence[int]) -> None:
        rows_of, columns_at = (one.ravel() for one in np.meshgrid(chosen, columns_of))
        found[rows_of, columns_at] = _timed(
            forward[:, rows_of, columns_at], backward[:, rows_of, columns_at],
            (send[rows_of], batches[rows_of]), cut,
        )  # fmt: skip

    stretches = [(a, b) for a, b in zip(ends, ends[1:], strict=False) if b - a > 1]
    everyone = np.arange(rows)
    fill(everyone, ends + [(first + last) // 2 for first, last in stretches])
    for first, last in stretches:
        middle = (first + last) // 2
        line = np.linspace(0.0, 1.0, last - first + 1)[None, :]
        begin, end = found[:, first, None], found[:, last, None]
        straight = begin + (end - begin) * line
        bent = np.abs(straight[:, middle - first] - found[:, middle]) > _EQUAL * end[:, 0]
        even = everyone[~bent]
        found[even, first + 1 : last] = straight[even, 1:-1]
        others = [k for k in range(first + 1, last) if k != middle]
        if bent.any() and others:
            fill(everyone[bent], others)
    return found


def _timed(forward: Any, backward: Any, rest: tuple[Any, Any], cut: Cut) -> Any:
    """Seconds of some lanes: of each class of chunk, shape (classes, lanes)."""
    send, batches = rest
    if cut.split.schedule == "interleaved":
        p = cut.split.pp
        of = [cut.of[place : place + p] for place in range(0, len(cut.of), p)]
        return interleaved_s(Chunks(of, forward, backward, send), batches)
    taken = list(cut.of)
    ahead, behind = forward[taken], backward[taken]
    ahead[:-1] += send
    behind[1:] += send
    return one_f_one_b_s(ahead, behind, batches)
