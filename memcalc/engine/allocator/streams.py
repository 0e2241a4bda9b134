"""Memory of several streams: PyTorch's allocator never gives a block of one stream to another.

FSDP2 gathers parameters on a stream of its own and takes reductions' results on another. What was
freed there waits for that stream's next request, so each has reserved what it ever needed at once.
Sources: c10/cuda/CUDACachingAllocator.cpp (free blocks are kept by stream);
torch/distributed/fsdp/_fully_shard/_fsdp_collectives.py (foreach_all_gather, foreach_reduce) of
PyTorch 2.13. Checked by: unit/test_allocator_streams.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from memcalc.engine.allocator.replay import AllocatorResult, simulate
from memcalc.engine.expand import Expanded
from memcalc.engine.structure import Structure

#: What is taken on a stream of its own -> which; all else is taken on the stream that computes.
STREAMS: Final = {"all_gather_input": 1, "all_gather_output": 1, "reduce_scatter_output": 2}


def streams_of(structure: Structure, events: Expanded) -> dict[int, int]:
    """The storages of a micro-batch that are not of the computing stream -> their stream."""
    if not STREAMS.keys() & set(structure.names):
        return {}
    names = structure.names
    return {
        storage: STREAMS[names[traced]]
        for storage, traced in enumerate(events.traced)
        if names[traced] in STREAMS
    }


def simulate_streams(
    events: Sequence[int], sizes: Sequence[int], streams: Mapping[int, int], expandable: bool
) -> AllocatorResult:
    """A replay whose reserved bytes are the sum of what each stream reserved at most.

    streams: blocks that are not of stream 0. Everything else is the replay of one stream.
    """
    whole = simulate(events, sizes, expandable_segments=expandable)
    if not streams:
        return whole
    reserved = 0
    for own in events_by_stream(events, streams):
        reserved += simulate(own, sizes, expandable_segments=expandable).peak_reserved_bytes
    return whole._replace(peak_reserved_bytes=reserved, final_reserved_bytes=reserved)


def events_by_stream(events: Sequence[int], streams: Mapping[int, int]) -> Iterator[list[int]]:
    """The events of each stream, in order; streams: blocks that are not of stream 0."""
    for stream in {0, *streams.values()}:
        yield [e for e in events if streams.get(e if e >= 0 else ~e, 0) == stream]
