"""Collect: what is kept of millions of setups as they come by, a block of arrays at a time.

Kept are the fastest that may fit, the front of memory and speed, and of what does not fit the fastest and
the least lacking. A block is looked through by few array operations: most of its setups are slower than what
is known at less memory. Checked by: unit/test_search_collect.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

#: Bins of memory, to which the fastest setup that needs no more is known.
_BINS: Final = 512
#: Setups of the front are sorted out once so many are waiting.
_WAITING: Final = 20_000


class Kept(NamedTuple):
    """A setup: seconds of its step, bytes it allocates, bytes it lacks (<= 0: it may fit), what it is.

    what: of the space it comes from, with the column it is in.
    """

    step_s: float
    allocated: float
    lacking: float
    what: Any


class Collector:
    """Keeps `most` of each kind. scale_bytes: what bins of memory end at. limit_bytes: what a setup may lack
    at most to count as one that may fit; below 0 where memory must stay free."""

    def __init__(self, most: int, scale_bytes: float, limit_bytes: float = 0.0) -> None:
        import numpy as np

        self.most, self.scale, self.limit = most, _BINS / scale_bytes, limit_bytes
        self.best = np.full(_BINS + 1, np.inf)  # fastest of those that need at most a bin
        self.valid = self.may_fit = 0
        self.fastest: list[Kept] = []
        self.front: list[Kept] = []
        self.misses: list[Kept] = []  # the fastest that lack memory
        self.nearest: list[Kept] = []  # those that lack least

    def add(self, arrays: tuple[Any, Any, Any], rows: Any, what: Any) -> None:
        """Look through a block: (step_s, allocated, lacking or None) of shape (rows, K).

        rows: those that count; what: told of each setup kept, with its place (row, column).
        """
        import numpy as np

        step, allocated, lacking = arrays
        if not rows.all():
            chosen = np.flatnonzero(rows)
            step, allocated = step[chosen], allocated[chosen]
            lacking = None if lacking is None else lacking[chosen]
        else:
            chosen = None
        self.valid += step.size
        if not step.size:
            return
        fits = np.ones(step.shape, bool) if lacking is None else lacking <= self.limit
        count = int(np.count_nonzero(fits))
        self.may_fit += count
        found = _Block(step, allocated, lacking, (what, chosen))
        if count:
            limit = self.fastest[-1].step_s if len(self.fastest) >= self.most else np.inf
            good = fits & (step < limit)
            if good.any():
                self.fastest = self._least(self.fastest, found, good, _by_step)
            bins = (allocated * self.scale).astype(np.int32)
            np.minimum(bins, _BINS, out=bins)
            good = fits & (step < self.best[bins])
            if good.any():
                self._forward(found, good, bins)
        if count < step.size:
            self._missed(found, fits)

    def _missed(self, block: _Block, fits: Any) -> None:
        import numpy as np

        limit = self.misses[-1].step_s if len(self.misses) >= self.most else np.inf
        good = ~fits & (block.step < limit)
        if good.any():
            self.misses = self._least(self.misses, block, good, _by_step)
        if self.fastest:
            return
        limit = self.nearest[-1].lacking if len(self.nearest) >= self.most else np.inf
        good = ~fits & (block.lacking < limit)
        if good.any():
            self.nearest = self._least(self.nearest, block, good, _by_lack)

    def _forward(self, block: _Block, good: Any, bins: Any) -> None:
        """Setups that no known one beats in both; the bins learn of them."""
        import numpy as np

        where = np.flatnonzero(good)
        np.minimum.at(self.best, bins.reshape(-1)[where], block.step.reshape(-1)[where])
        np.minimum.accumulate(self.best, out=self.best)
        step, size = block.step.reshape(-1)[where], block.allocated.reshape(-1)[where]
        self.front += block.kept(where[front_of(size, step)])
        if len(self.front) > _WAITING:
            self.front = front(self.front)

    def _least(self, known: list[Kept], block: _Block, good: Any, by: Any) -> list[Kept]:
        import numpy as np

        where = np.flatnonzero(good)
        if len(where) > self.most:
            values = by(block).reshape(-1)[where]
            where = where[np.argpartition(values, self.most - 1)[: self.most]]
        key = (lambda one: one.step_s) if by is _by_step else (lambda one: one.lacking)
        return sorted([*known, *block.kept(where)], key=key)[: self.most]


class _Block(NamedTuple):
    step: Any
    allocated: Any
    lacking: Any
    what: tuple[Any, Any]

    def kept(self, where: Iterable[int]) -> list[Kept]:
        """The setups at these places."""
        what, chosen = self.what
        found = []
        for place in where:
            row, column = divmod(int(place), self.step.shape[1])
            lacking = -1.0 if self.lacking is None else float(self.lacking[row, column])
            at = row if chosen is None else int(chosen[row])
            found.append(
                Kept(float(self.step[row, column]), float(self.allocated[row, column]), lacking,
                     (what, at, column))
            )  # fmt: skip
        return found


def _by_step(block: _Block) -> Any:
    return block.step


def _by_lack(block: _Block) -> Any:
    return block.lacking


def front_of(size: Any, step: Any) -> Any:
    """Places of the setups that no other one beats in both, least memory first."""
    import numpy as np

    order = np.lexsort((step, size))
    ordered = step[order]
    before = np.minimum.accumulate(np.concatenate([[np.inf], ordered[:-1]]))
    return order[ordered < before]


def front(kept: list[Kept]) -> list[Kept]:
    """The front of these setups, least memory first."""
    import numpy as np

    if not kept:
        return []
    size, step = (np.array([one[at] for one in kept]) for at in (1, 0))
    return [kept[place] for place in front_of(size, step).tolist()]
