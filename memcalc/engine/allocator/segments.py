"""Free blocks of the simulated CUDA caching allocator: cudaMalloc segments or expandable ranges.

Decides: which block serves a request, what is obtained from and given back to the device. The
replay of an event stream, the rules and their source are in `allocator.py`.

Everything here counts units of 512 B. A free block is one integer, size << 44 | address; the pools
are sorted lists of these, so best fit is one bisection. Segments never touch, so boundary tags
(start -> size, end -> start) find the neighbours to merge with.
"""

from __future__ import annotations

from bisect import bisect_left, insort

UNIT = 512
SHIFT = 44
ADDRESS = (1 << SHIFT) - 1
_MIB = (1 << 20) // UNIT
SMALL = _MIB  # largest request of the small pool
LARGE_SLACK = _MIB  # remainders of the large pool up to this stay with the block
_SMALL_SEGMENT = 2 * _MIB
_LARGE_SEGMENT = 20 * _MIB
_OWN_SEGMENT = 10 * _MIB  # from here on a request gets its own segment
_ROUND_LARGE = 2 * _MIB
_ARENA = 1 << 43  # addresses of the large pool's expandable range start here


class Segments:
    """Free blocks of both pools over cudaMalloc segments, and the bytes held from the device."""

    __slots__ = (
        "small", "large", "size_at", "start_to", "segments", "capacity", "reserved",
        "peak_reserved", "count", "peak_count", "retries", "next_address",
    )  # fmt: skip

    def __init__(self, capacity: int | None) -> None:
        self.small: list[int] = []
        self.large: list[int] = []
        self.size_at: dict[int, int] = {}  # free block: start -> size
        self.start_to: dict[int, int] = {}  # free block: end -> start
        self.segments: dict[int, int] = {}  # start -> size of what was obtained from the device
        self.capacity = (1 << 62) if capacity is None else capacity // UNIT
        self.reserved = self.peak_reserved = self.count = self.peak_count = 0
        self.retries = self.next_address = 0

    def take(self, pool: list[int], need: int) -> int:
        """Remove and return a block of at least `need` units: cached, new, or -1: out of memory."""
        index = self.best_fit(pool, need)
        if index < len(pool):
            key = pool.pop(index)
            start = key & ADDRESS
            del self.start_to[start + self.size_at.pop(start)]
            return key
        key = self.grow(pool, need)
        if key < 0 and self.release():
            key = self.grow(pool, need)
        return key

    def best_fit(self, pool: list[int], need: int) -> int:
        return bisect_left(pool, need << SHIFT)

    def grow(self, pool: list[int], need: int) -> int:
        """A new segment for `need`, as a block of its whole size; -1 when the device is full."""
        if need <= SMALL:
            size = _SMALL_SEGMENT
        elif need < _OWN_SEGMENT:
            size = _LARGE_SEGMENT
        else:
            size = -(-need // _ROUND_LARGE) * _ROUND_LARGE
        if self.reserved + size > self.capacity:
            return -1
        start = self.next_address
        self.next_address += size + 1  # a gap, so that segments never merge
        self.segments[start] = size
        self.hold(size, 1)
        return size << SHIFT | start

    def hold(self, size: int, count: int) -> None:
        self.reserved += size
        self.count += count
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        self.peak_count = max(self.peak_count, self.count)

    def release(self) -> bool:
        """Give wholly free segments back to the device; whether a retry makes sense."""
        self.retries += 1
        before = self.reserved
        for pool in (self.large, self.small):
            for key in tuple(pool):
                size, start = key >> SHIFT, key & ADDRESS
                if self.segments.get(start) == size:
                    self.drop(pool, start, size)
                    del self.segments[start]
                    self.hold(-size, -1)
        return self.reserved < before

    def drop(self, pool: list[int], start: int, size: int) -> None:
        """Remove one free block from its pool."""
        del pool[bisect_left(pool, size << SHIFT | start)]
        del self.size_at[start]
        del self.start_to[start + size]

    def put(self, pool: list[int], start: int, size: int) -> None:
        """Add a free block, merged with the free blocks before and after it."""
        size_at, start_to = self.size_at, self.start_to
        end = start + size
        after = size_at.pop(end, 0)
        if after:
            del pool[bisect_left(pool, after << SHIFT | end)]
            size += after
            end += after
        before = start_to.pop(start, -1)
        if before >= 0:
            del pool[bisect_left(pool, size_at[before] << SHIFT | before)]
            size += start - before
            start = before
        size_at[start] = size
        start_to[end] = start
        insort(pool, size << SHIFT | start)

    def ranges(self) -> list[tuple[int, int]]:
        """(start, size) of everything held from the device, ascending."""
        return sorted(self.segments.items())


class ExpandableSegments(Segments):
    """Free blocks over two address ranges, small and large, whose pages are mapped on demand."""

    __slots__ = ("holes",)

    def __init__(self, capacity: int | None) -> None:
        super().__init__(capacity)
        self.holes = {0: _ARENA - 1, _ARENA: _ARENA - 1}  # unmapped: start -> size

    def best_fit(self, pool: list[int], need: int) -> int:
        """Best fit by size with the unmapped range behind: blocks that can grow come last."""
        index = bisect_left(pool, need << SHIFT)
        while index + 1 < len(pool) and self.room(pool[index + 1]) < self.room(pool[index]):
            index += 1
        return index

    def room(self, key: int) -> int:
        size, start = key >> SHIFT, key & ADDRESS
        return size + self.holes.get(start + size, 0)

    def grow(self, pool: list[int], need: int) -> int:
        """Map pages at the lowest address where free and unmapped ranges together hold `need`."""
        page = _SMALL_SEGMENT if need <= SMALL else _LARGE_SEGMENT
        base = 0 if need <= SMALL else _ARENA
        for hole in sorted(self.holes):
            if not base <= hole < base + _ARENA:
                continue
            start = end = self.start_to.get(hole, hole)
            while end - start < need and (step := self.size_at.get(end) or self.holes.get(end, 0)):
                end += step
            if end - start >= need:
                return self.map(pool, (start, need), page)
        raise AssertionError("the address range is never used up")

    def map(self, pool: list[int], wanted: tuple[int, int], page: int) -> int:
        """Map the holes of a range and return it, with the free rest behind it, as one block."""
        start, need = wanted
        plan: list[tuple[int, int]] = []  # the holes to map, and how much of each
        end = start
        while end - start < need:
            size = self.size_at.get(end, 0)
            if not size:
                hole = self.holes[end]
                size = min(-(-min(need - (end - start), hole) // page) * page, hole)
                plan.append((end, size))
            end += size
        total = sum(size for _, size in plan)
        if self.reserved + total > self.capacity:
            return -1
        for at, size in plan:
            rest = self.holes.pop(at) - size
            if rest:
                self.holes[at + size] = rest
            self.put(pool, at, size)
        self.hold(total, total // page)
        whole = self.size_at[start]
        self.drop(pool, start, whole)
        return whole << SHIFT | start

    def release(self) -> bool:
        """Unmap the whole pages inside every free block; whether a retry makes sense."""
        self.retries += 1
        before = self.reserved
        for pool, base, page in (
            (self.large, _ARENA, _LARGE_SEGMENT),
            (self.small, 0, _SMALL_SEGMENT),
        ):
            for key in tuple(pool):
                size, start = key >> SHIFT, key & ADDRESS
                first = base + -(-(start - base) // page) * page
                last = base + (start + size - base) // page * page
                if last > first:
                    self.drop(pool, start, size)
                    if first > start:
                        self.put(pool, start, first - start)
                    if start + size > last:
                        self.put(pool, last, start + size - last)
                    self.unmap(first, last - first)
                    self.hold(first - last, (first - last) // page)
        return self.reserved < before

    def unmap(self, start: int, size: int) -> None:
        for at, length in tuple(self.holes.items()):
            if at + length == start or at == start + size:
                del self.holes[at]
                start, size = min(start, at), size + length
        self.holes[start] = size

    def ranges(self) -> list[tuple[int, int]]:
        """(start, size) of every mapped range between holes, ascending."""
        found = []
        for base in (0, _ARENA):
            at = base
            for hole in sorted(h for h in self.holes if base <= h < base + _ARENA):
                if hole > at:
                    found.append((at, hole - at))
                at = hole + self.holes[hole]
        return found
