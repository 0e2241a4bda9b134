"""The caching allocator for many sizes of one event stream at once: every lane is one size.

The rules are those of `allocator.py` and give its numbers exactly; here each event is one array operation
over all lanes instead of a bisection. Free blocks of a lane lie in numbered slots. A slot's key is
size | address | slot, so the smallest key that is not below the request is the best fit; what lies beside
a block in its segment is kept as links, so that free neighbours merge without a search. One stream,
cudaMalloc segments, no limit of capacity: what needs those replays in `allocator.py`.
Checked by: property/test_grid.py, which holds it against `simulate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from memcalc.engine.allocator.segments import LARGE_SLACK, SMALL, UNIT

_MIB: Final = (1 << 20) // UNIT
_SMALL_SEGMENT: Final = 2 * _MIB
_LARGE_SEGMENT: Final = 20 * _MIB
_OWN_SEGMENT: Final = 10 * _MIB
_ROUND_LARGE: Final = 2 * _MIB
#: Bits of a key: the slot, the address (in steps that no two free blocks share), the size above them.
_SLOT_BITS: Final = {True: 9, False: 10}
_ADDRESS_BITS: Final = {True: 33, False: 22}
_STEP_BITS: Final = {True: 0, False: 11}
#: Units one lane's tensors may have together at most: then addresses fit their bits, segments included.
LIMIT_BYTES: Final = (1 << 31) * UNIT
#: Requests and releases after which to look how many slots are in use.
_LOOK_AGAIN: Final = 32


class GridPeaks(NamedTuple):
    """Peak bytes of each lane: int64 arrays, shape (lanes,)."""

    allocated: Any
    reserved: Any


class TooManyBlocks(Exception):
    """A lane has more free blocks at once than there are slots."""


class _Pool:
    """The free and live blocks of one pool, small or large, over all lanes.

    Nodes are numbered: slots of free blocks, then the edge of a segment, then live blocks. Arrays are
    flat: node * lanes + lane.
    """

    def __init__(self, lanes: int, live: int, small: bool) -> None:
        import numpy as np

        self.lanes, self.small = lanes, small
        self.slots = 1 << _SLOT_BITS[small]
        self.slack = 0 if small else LARGE_SLACK
        self.low, self.step = _SLOT_BITS[small], _STEP_BITS[small]
        self.high = self.low + _ADDRESS_BITS[small]
        nodes = self.slots + 1 + live
        self.keys, self.over = (np.zeros((self.slots + 1) * lanes, np.int64) for _ in range(2))
        self.left, self.right, self.address, self.size = (
            np.zeros(nodes * lanes, np.int64) for _ in range(4)
        )
        self.empty = np.repeat(np.arange(self.slots)[::-1], lanes)  # stacks of slots, one a lane
        self.top = np.full(lanes, self.slots)  # how many are on it
        self.next = np.zeros(lanes, np.int64)  # address of the next segment
        self.reserved = np.zeros(lanes, np.int64)
        self.used = 1  # slots from 0 on that any lane has in use
        self.turns = 0

    def take(self, block: int, need: Any, lane: Any) -> Any:
        """Serve `need` units as live block `block` in these lanes; the sizes of the blocks given."""
        import numpy as np

        lanes, wanted = self.lanes, need << self.high
        best = self._best(wanted, lane)
        key = best + wanted
        slot, size = key & (self.slots - 1), key >> self.high
        none = best < 0
        if none.any():
            which = none.nonzero()[0]
            slot[which], size[which] = self._grow(need[which], lane[which])
        at = slot * lanes + lane
        before, after, address = self.left[at], self.right[at], self.address[at]
        rest, behind = size - need, address + need
        split = rest > self.slack
        self.keys[at] = self._key(rest, behind, slot) * split
        self.address[at] = behind
        top = self.top[lane]
        self.empty[top * lanes + lane] = slot  # counts where nothing is left
        self.top[lane] = top + ~split
        mine = self._live(block, lane)
        beside = np.where(split, slot, after)
        number = self.slots + 1 + block
        self.right[before * lanes + lane] = number
        self.left[beside * lanes + lane] = number
        self.left[mine], self.right[mine], self.address[mine] = before, beside, address
        self.size[mine] = given = np.where(split, need, size)
        return given

    def _best(self, wanted: Any, lane: Any) -> Any:
        """How far the key of the best fit is above the one wanted; below 0 where nothing fits."""
        import numpy as np

        if len(lane) < self.lanes:
            everywhere = np.zeros(self.lanes, np.int64)
            everywhere[lane] = wanted
            wanted = everywhere
        self._look()
        rows = self.keys[: self.used * self.lanes].reshape(self.used, self.lanes)
        over = self.over[: rows.size].reshape(rows.shape)
        np.subtract(rows, wanted, out=over)  # as unsigned, what is too small is beyond all others
        best = np.minimum.reduce(over.view(np.uint64), axis=0).view(np.int64)
        return best if len(lane) == self.lanes else best[lane]

    def _look(self) -> None:
        """Now and then: how many slots are in use. Raises where a lane has hardly any left."""
        import numpy as np

        if not self.turns % _LOOK_AGAIN:
            rows = np.flatnonzero(self.keys.reshape(-1, self.lanes)[: self.used].any(axis=1))
            self.used = int(rows[-1]) + 1 if len(rows) else 1
            if self.top.min() <= 2 * _LOOK_AGAIN:
                raise TooManyBlocks
        self.turns += 1

    def put(self, block: int, lane: Any) -> Any:
        """Free a live block in these lanes, merged with free neighbours; the sizes given back."""
        import numpy as np

        self._look()
        lanes, edge = self.lanes, self.slots
        mine = self._live(block, lane)
        before, after, given = self.left[mine], self.right[mine], self.size[mine]
        at_before = np.minimum(before, edge) * lanes + lane
        at_after = np.minimum(after, edge) * lanes + lane
        joins, joined = before < edge, after < edge
        ahead, behind = self.keys[at_before] >> self.high, self.keys[at_after] >> self.high
        size, address = given + ahead + behind, self.address[mine] - ahead
        outer_left = np.where(joins, self.left[at_before], before)
        outer_right = np.where(joined, self.right[at_after], after)
        top = self.top[lane]
        alone = ~(joins | joined)
        popped = self.empty[(top - alone) * lanes + lane]
        slot = np.where(joins, before, np.where(joined, after, popped))
        self.used = max(self.used, int(slot.max()) + 1)
        self.empty[(top - alone) * lanes + lane] = np.where(alone, popped, after)
        self.top[lane] = top - alone + (joins & joined)  # where both joined, a slot is left over
        self.keys[at_after] = 0
        at = slot * lanes + lane
        self.keys[at] = self._key(size, address, slot)
        self.address[at], self.left[at], self.right[at] = address, outer_left, outer_right
        self.right[outer_left * lanes + lane] = slot
        self.left[outer_right * lanes + lane] = slot
        return given

    def _grow(self, need: Any, lane: Any) -> tuple[Any, Any]:
        """Segments for `need` in these lanes, each a free block of its whole size: (slots, sizes)."""
        import numpy as np

        size = np.where(
            need < _OWN_SEGMENT, _LARGE_SEGMENT, -(-need // _ROUND_LARGE) * _ROUND_LARGE
        )
        if self.small:
            size = np.full(len(lane), _SMALL_SEGMENT)
        self.top[lane] -= 1
        slot = self.empty[self.top[lane] * self.lanes + lane]
        self.used = max(self.used, int(slot.max()) + 1)
        at, start = slot * self.lanes + lane, self.next[lane]
        self.address[at], self.left[at], self.right[at] = start, self.slots, self.slots
        self.next[lane] = start + size + (1 << self.step)  # apart by a step, as keys know addresses
        self.reserved[lane] += size
        return slot, size

    def _key(self, size: Any, address: Any, slot: Any) -> Any:
        return size << self.high | address >> self.step << self.low | slot

    def _live(self, block: int, lane: Any) -> Any:
        """Where a live block's entries are: a stretch, or single places where lanes are left out."""
        first = (self.slots + 1 + block) * self.lanes
        return slice(first, first + self.lanes) if len(lane) == self.lanes else first + lane


def numbered(events: Sequence[int], blocks: int) -> tuple[list[int], int]:
    """A number for each block that no other has while both are alive, and how many are needed."""
    numbers, free, made = [-1] * blocks, list[int](), 0
    for event in events:
        if event < 0:
            free.append(numbers[~event])
            continue
        if free:
            numbers[event] = free.pop()
        else:
            numbers[event], made = made, made + 1
    return numbers, made


def simulate_grid(events: Sequence[int], sizes: Sequence[Any], lanes: int) -> GridPeaks:
    """Peaks of a stream whose blocks have the bytes sizes[i]: an int, or an array of shape (lanes,).

    The same as `allocator.simulate` of every lane, from an empty cache. Raises TooManyBlocks where a
    lane's cache is in more pieces than there are slots. Lanes of more than LIMIT_BYTES are not allowed.
    The pools have nothing to do with each other, and lanes that ask one for the same are one lane of it:
    most tensors depend on the product of micro-batch and sequence alone.
    """
    import numpy as np

    numbers, live = numbered(events, len(sizes))
    places = {one: place for place, one in enumerate(dict.fromkeys(map(id, sizes)))}
    known = {id(size): size for size in sizes}
    units = np.array([np.broadcast_to(known[one], lanes) for one in places], np.int64)
    units = -(-units // UNIT)
    small = _Asked.of(np.where(units <= SMALL, units, 0), live, True)
    large = _Asked.of(np.where(units > SMALL, units, 0), live, False)
    of = [places[id(size)] for size in sizes]
    peak = np.zeros(lanes, np.int64)
    for event in events:
        if event < 0:
            for asked in (small, large):
                asked.free(of[~event], numbers[~event])
            continue
        for asked in (small, large):
            asked.allocate(of[event], numbers[event])
        np.maximum(peak, small.whole + large.whole, out=peak)
    reserved = small.pool.reserved[small.lane_of] + large.pool.reserved[large.lane_of]
    return GridPeaks(peak * UNIT, reserved * UNIT)


class _Asked:
    """What one pool is asked for: its own lanes, and by size which of them want how much.

    whole: units allocated in each of the stream's lanes; lane_of: the pool's lane of each of these.
    """

    def __init__(self, pool: _Pool, lane_of: Any, wanted: list[tuple[Any, Any]]) -> None:
        import numpy as np

        self.pool, self.lane_of, self.wanted = pool, lane_of, wanted
        self.allocated = np.zeros(pool.lanes, np.int64)
        self.whole = np.zeros(len(lane_of), np.int64)

    @classmethod
    def of(cls, units: Any, live: int, small: bool) -> _Asked:
        """units: (sizes, lanes), 0 where a size is nothing to this pool."""
        import numpy as np

        own, lane_of = np.unique(units, axis=1, return_inverse=True)
        lanes = [np.flatnonzero(row) for row in own]
        wanted = [(lane, row[lane]) for lane, row in zip(lanes, own, strict=True)]
        return cls(_Pool(own.shape[1], live, small), lane_of.reshape(-1), wanted)

    def allocate(self, size: int, block: int) -> None:
        """A block of a size, in the lanes where it is this pool's."""
        lane, need = self.wanted[size]
        if len(lane):
            self.allocated[lane] += self.pool.take(block, need, lane)
            self.whole = self.allocated[self.lane_of]

    def free(self, size: int, block: int) -> None:
        """The end of such a block."""
        lane, _ = self.wanted[size]
        if len(lane):
            self.allocated[lane] -= self.pool.put(block, lane)
            self.whole = self.allocated[self.lane_of]
