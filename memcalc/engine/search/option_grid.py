"""Options of states over the rows of a split: bytes of the rank that needs most, and seconds of a step.

Arrays have the shape (options, K, rows): K numbers of blocks computed again, rows innermost, of which there
are most.
Checked by: property/test_search_grid.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from memcalc.engine.search.chunk_sums import ChunkTimes
from memcalc.engine.search.splits import Cut
from memcalc.engine.search.states_grid import Once, StatesOption

#: Share of rows from which all are computed: choosing some costs about as much.
_MANY: Final = 0.3


class Group(NamedTuple):
    """Options of states for a split: (options, layouts), bytes and lacking (options, kinds of rank, layouts),
    once (classes, options, layouts)."""

    options: tuple[StatesOption, ...]
    possible: Any
    bytes: Any
    lacking: Any
    stepping_s: Any
    once: Once

    def some(self, start: int, end: int) -> Group:
        """Some of the options."""
        own = slice(start, end)
        return Group(
            self.options[own], self.possible[own], self.bytes[own],
            None if self.lacking is None else self.lacking[own], self.stepping_s[own],
            Once(*(one[:, own] for one in self.once)),
        )  # fmt: skip


def joined(groups: Sequence[Group]) -> Group:
    """Groups of the same options, the layouts of one after those of the other."""
    import numpy as np

    if len(groups) == 1:
        return groups[0]
    one = groups[0]
    possible, stepping = (
        np.concatenate([getattr(group, name) for group in groups], axis=1)
        for name in ("possible", "stepping_s")
    )
    bytes_of = np.concatenate([group.bytes for group in groups], axis=2)
    lacking = None
    if one.lacking is not None:
        lacking = np.concatenate([group.lacking for group in groups], axis=2)
    once = Once(
        *(np.concatenate(column, axis=2) for column in zip(*(g.once for g in groups), strict=True))
    )
    return Group(one.options, possible, bytes_of, lacking, stepping, once)


class Beside(NamedTuple):
    """Compute of a class of chunks that exchanges run beside, (K, rows), and its least, (rows,)."""

    backward: tuple[Any, Any]
    forward: tuple[Any, Any]


def beside_of(times: Sequence[ChunkTimes]) -> list[Beside]:
    """Of each class: backward, beside which gradients are summed, and forward, beside which weights come."""
    return [
        Beside(
            *((one, one.min(axis=0)) for one in (chunk.blocks_backward_s, chunk.blocks_forward_s))
        )
        for chunk in times
    ]


def step_seconds(
    span: Any, group: Group, compute: Sequence[Beside], of: tuple[Any, Cut, float]
) -> Any:
    """Seconds of a step: (options, K, rows). of: layouts of the rows, the cut, overlap_slowdown.

    Where compute is longer than what runs beside it whatever k is, nothing of that depends on k.
    """
    import numpy as np

    layout, cut, slower = of
    once = Once(*(one.take(layout, axis=2) for one in group.once))
    after = group.stepping_s[:, None, layout]
    hidden = once.alone + once.last + slower * (once.beside + once.ahead)
    step = span + (_slowest(hidden, cut)[:, None, :] + after)
    most = [one.max(axis=1)[:, layout] for one in (group.once.beside, group.once.ahead)]
    beside = [
        [(once.beside[number], most[0][number], *one.backward),
         (once.ahead[number], most[1][number], *one.forward)]
        for number, one in enumerate(compute)
    ]  # fmt: skip
    shows = np.zeros(len(layout), bool)
    for pairs in beside:
        for _, longest, _, least in pairs:
            shows |= longest > least
    if not shows.any():
        return step
    own: Any = slice(None) if shows.mean() > _MANY else np.flatnonzero(shows)
    every = []
    for number, pairs in enumerate(beside):
        total = hidden[number][:, None, own]
        for seconds, longest, every_k, least in pairs:
            if (longest > least).any():
                shown = seconds[:, None, own] - every_k[:, own]
                np.maximum(shown, 0.0, out=shown)
                shown *= 1 - slower
                total = np.add(total, shown, out=shown)
        every.append(total)
    step[:, :, own] = span[:, own] + (_slowest(every, cut) + after[:, :, own])
    return step


def _slowest(seconds: Sequence[Any], cut: Cut) -> Any:
    """The most of a rank's chunks together, of seconds of each class."""
    import numpy as np

    most: Any = None
    for _, kind in cut.ranks:
        total: Any = 0.0
        for one in set(kind):
            total = total + kind.count(one) * seconds[one]
        most = total if most is None else np.maximum(most, total)
    return most


def most_bytes(alive: Sequence[Any], group: Group, layout: Any) -> tuple[Any, Any]:
    """Bytes of the rank that needs most, and what the one that lacks most lacks: (options, K, rows)."""
    own = group.bytes[:, :, layout]
    allocated = _most(alive, own)
    lacking = None if group.lacking is None else _most(alive, group.lacking[:, :, layout])
    return allocated, lacking


def _most(alive: Sequence[Any], more: Any) -> Any:
    """The most over kinds of rank of what is alive and what is there besides.

    alive: of each kind, (K, rows); more: (options, kinds, rows). A kind that another exceeds in both
    decides nothing.
    """
    import numpy as np

    most: Any = None
    kinds = range(len(alive))
    for one in kinds:
        if any(
            (alive[other] >= alive[one]).all() and (more[:, other] >= more[:, one]).all()
            for other in kinds
            if other < one
        ):
            continue
        total = alive[one] + more[:, one, None, :]
        most = total if most is None else np.maximum(most, total, out=most)
    return most
