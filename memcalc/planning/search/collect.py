"""Collect: what is kept of millions of setups as they come by, a block of arrays at a time.

Kept are the fastest that may fit, the front of memory and speed, and of what does not fit the front of what
it lacks and speed. A block is looked through by few array operations: most of its setups are slower than
what is known at less memory. Checked by: unit/test_search_collect.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

#: Bins of memory, to which the fastest setup that needs no more is known.
_BINS: Final = 512
#: Setups of a front are sorted out once so many are waiting.
_WAITING: Final = 20_000


class Kept(NamedTuple):
    """A setup: seconds of its step, bytes it allocates, bytes it lacks (<= 0: it may fit), what it is.

    what: what was told of its block, and its place in the block's arrays.
    """

    step_s: float
    allocated: float
    lacking: float
    what: Any


class Collector:
    """Keeps what matters. most: of the fastest. scale_bytes: the most memory that bins tell apart.

    limit_bytes: what a setup may lack at most to count as one that may fit; below 0 where memory must
    stay free.
    """

    def __init__(self, most: int, scale_bytes: float, limit_bytes: float = 0.0) -> None:
        self.most, self.limit = most, limit_bytes
        self.valid = self.may_fit = 0
        self.fastest: list[Kept] = []
        self.front = Front(scale_bytes, 1)
        self.misses = Front(2 * scale_bytes, 2)

    def add(self, arrays: tuple[Any, Any, Any], valid: int, what: Any) -> None:
        """Look through a block: (step_s, allocated, lacking or None), arrays of one shape.

        valid: setups in it; places of none take infinitely long. what: told of each setup kept.
        """
        import numpy as np

        step, allocated, lacking = arrays
        if lacking is None:
            lacking = np.where(np.isinf(step), np.inf, -1.0)
        self.valid += valid
        block = _Block(step, allocated, lacking, what)
        fits = lacking <= self.limit
        count = int(np.count_nonzero(fits))
        self.may_fit += count
        if count:
            self._fastest(block, fits)
            self.front.add(block, allocated, fits)
        if count < valid:
            self.misses.add(block, lacking, ~fits)

    def _fastest(self, block: _Block, fits: Any) -> None:
        import numpy as np

        limit = self.fastest[-1].step_s if len(self.fastest) >= self.most else np.inf
        where = np.flatnonzero(fits & (block.step < limit))
        if not len(where):
            return
        if len(where) > self.most:
            step = block.step.reshape(-1)[where]
            where = where[np.argpartition(step, self.most - 1)[: self.most]]
        found = [*self.fastest, *block.kept(where)]
        self.fastest = sorted(found, key=lambda one: one.step_s)[: self.most]


class Front:
    """Setups that no other one beats in speed and in some bytes. key: which of Kept these are."""

    def __init__(self, scale_bytes: float, key: int) -> None:
        import numpy as np

        self.scale, self.key = _BINS / scale_bytes, key
        self.best = np.full(_BINS + 1, np.inf)  # the fastest of those within a bin and below
        self.waiting: list[Kept] = []

    def add(self, block: _Block, size: Any, good: Any) -> None:
        """Look through some setups of a block; size: their bytes."""
        import numpy as np

        bins = np.clip(size * self.scale, 0, _BINS, out=np.empty(size.shape)).astype(np.int32)
        where = np.flatnonzero(good & (block.step < self.best[bins]))
        if not len(where):
            return
        step, bins = block.step.reshape(-1)[where], bins.reshape(-1)[where]
        kept = where[front_of(size.reshape(-1)[where], step)]
        # a bin's own fastest may need more than another setup of the bin: it counts from the next on
        np.minimum.at(self.best, np.minimum(bins + 1, _BINS), step)
        np.minimum.accumulate(self.best, out=self.best)
        self.waiting += block.kept(kept)
        if len(self.waiting) > _WAITING:
            self.waiting = self.points()

    def points(self) -> list[Kept]:
        """The front, least bytes first."""
        import numpy as np

        if not self.waiting:
            return []
        size = np.array([one[self.key] for one in self.waiting])
        step = np.array([one.step_s for one in self.waiting])
        return [self.waiting[place] for place in front_of(size, step).tolist()]


class _Block(NamedTuple):
    step: Any
    allocated: Any
    lacking: Any
    what: Any

    def kept(self, where: Iterable[int]) -> list[Kept]:
        """The setups at these places."""
        import numpy as np

        found = []
        for place in where:
            at = tuple(int(one) for one in np.unravel_index(int(place), self.step.shape))
            step, allocated, lacking = (float(one[at]) for one in self[:3])
            found.append(Kept(step, allocated, lacking, (self.what, at)))
        return found


def front_of(size: Any, step: Any) -> Any:
    """Places of the setups that no other one beats in both, least bytes first."""
    import numpy as np

    order = np.lexsort((step, size))
    ordered = step[order]
    before = np.minimum.accumulate(np.concatenate([[np.inf], ordered[:-1]]))
    return order[ordered < before]
