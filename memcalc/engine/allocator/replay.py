"""Simulator of PyTorch's CUDA caching allocator: what a stream of tensors reserves on the device.

Decides: peak allocated bytes (blocks as torch counts them, with rounding and unsplit remainders),
peak reserved bytes, and whether a given capacity is overrun. One stream, default settings, native
back end; no garbage-collection threshold, no max_split_size, no private pools.
Rules: sizes round up to 512 B. Requests up to 1 MiB come from 2 MiB segments, below 10 MiB from
20 MiB segments, others from their own, rounded up to 2 MiB. Best fit by (size, address). A rest
is split off if >= 512 B (small pool) or > 1 MiB (large pool); free neighbours of a segment merge.
Without room for a new segment, wholly free segments are given back once and the request retried.
Expandable segments: one address range per pool, mapped in pages of 2 and 20 MiB, always split.
Source: PyTorch, c10/cuda/CUDACachingAllocator.cpp.
Checked by: unit/test_allocator.py, oracle/test_allocator_traces.py.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from typing import NamedTuple

from memcalc.engine.allocator.segments import (
    ADDRESS,
    LARGE_SLACK,
    SHIFT,
    SMALL,
    UNIT,
    ExpandableSegments,
    Segments,
)


class AllocatorResult(NamedTuple):
    """Outcome of one replay, in bytes. After out_of_memory the replay stopped at that event.

    num_segments_peak counts cudaMalloc segments, or mapped pages with expandable segments.
    num_retries counts how often cached memory was given back to make room (num_alloc_retries).
    """

    peak_allocated_bytes: int
    peak_reserved_bytes: int
    final_allocated_bytes: int
    final_reserved_bytes: int
    num_segments_peak: int
    out_of_memory: bool
    index_of_peak: int  # first event with the allocated peak; -1 when nothing was allocated
    num_retries: int = 0
    index_of_out_of_memory: int = -1


def _check(cache: Segments, live: dict[int, int], allocated: int) -> None:
    """Assert that live and free blocks tile what is held from the device, and the totals agree."""
    free = dict(cache.size_at)
    assert allocated == sum(live.values()) <= cache.reserved <= cache.capacity
    assert cache.reserved == sum(size for _, size in cache.ranges()) <= cache.peak_reserved
    assert cache.start_to == {start + size: start for start, size in free.items()}
    keys = [size << SHIFT | start for start, size in free.items()]
    assert sorted(keys) == sorted(cache.small + cache.large)
    assert cache.small == sorted(cache.small)
    assert cache.large == sorted(cache.large)
    assert not free.keys() & live.keys()
    blocks = free | live
    for start, size in cache.ranges():
        at, was_free = start, False
        while at < start + size:
            assert blocks[at] > 0 and not (was_free and at in free), "free neighbours not merged"
            was_free = at in free
            at += blocks.pop(at)
        assert at == start + size
    assert not blocks, "a block outside every segment"


def _replay(
    cache: Segments, events: Sequence[int], need_of: list[int], slack: int, check: bool
) -> tuple[int, int, int, int]:
    """Units allocated at the end and at the peak, index of the peak, index of the failure or -1."""
    start_of, size_of = [0] * len(need_of), [0] * len(need_of)
    small, large, size_at, start_to = cache.small, cache.large, cache.size_at, cache.start_to
    take, put = cache.take, cache.put
    allocated = peak = 0
    index_of_peak = -1
    for index, event in enumerate(events):
        if event < 0:
            size = size_of[~event]
            if size:
                size_of[~event] = 0
                allocated -= size
                put(small if size <= SMALL else large, start_of[~event], size)
            elif check:
                assert not need_of[~event], f"event {index} frees what is not allocated"
        elif need := need_of[event]:
            pool = small if need <= SMALL else large
            if (key := take(pool, need)) < 0:
                return allocated, peak, index_of_peak, index
            size, start = key >> SHIFT, key & ADDRESS
            rest = size - need
            if rest > (slack if need > SMALL else 0):
                size_at[start + need] = rest
                start_to[start + size] = start + need
                insort(pool, rest << SHIFT | start + need)
                size = need
            start_of[event], size_of[event] = start, size
            allocated += size
            if allocated > peak:
                peak, index_of_peak = allocated, index
        if check:
            _check(cache, {a: n for a, n in zip(start_of, size_of, strict=True) if n}, allocated)
    return allocated, peak, index_of_peak, -1


def simulate(
    events: Sequence[int],
    sizes: Sequence[int],
    capacity_bytes: int | None = None,
    expandable_segments: bool = False,
    check: bool = False,
) -> AllocatorResult:
    """Replay allocations and frees through the allocator, starting from an empty cache.

    events: i >= 0 allocates block i of sizes[i] bytes, ~i frees it; an id is allocated once. Blocks
    of 0 bytes take nothing. Frees take effect at once, as on one stream.
    capacity_bytes: what the device gives to the allocator; None: no limit. Overrunning it ends the
    replay with out_of_memory set, never an exception.
    check: assert after every event that blocks tile their segments and all books agree (slow).
    Not counted: memory held by other streams and by libraries outside the allocator.
    Checked by: unit/test_allocator.py.
    """
    cache = (ExpandableSegments if expandable_segments else Segments)(capacity_bytes)
    need_of = [-(-size // UNIT) for size in sizes]
    slack = 0 if expandable_segments else LARGE_SLACK
    allocated, peak, index_of_peak, failed = _replay(cache, events, need_of, slack, check)
    return AllocatorResult(
        peak_allocated_bytes=peak * UNIT,
        peak_reserved_bytes=cache.peak_reserved * UNIT,
        final_allocated_bytes=allocated * UNIT,
        final_reserved_bytes=cache.reserved * UNIT,
        num_segments_peak=cache.peak_count,
        out_of_memory=failed >= 0,
        index_of_peak=index_of_peak,
        num_retries=cache.retries,
        index_of_out_of_memory=failed,
    )
