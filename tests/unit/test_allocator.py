"""The allocator simulator: examples worked by hand, a plain reference model, random streams."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcalc.engine.allocator.replay import AllocatorResult, simulate
from memcalc.units import KIB, MIB


def run(*steps: int, sizes: list[int], **options) -> AllocatorResult:
    return simulate(list(steps), sizes, check=True, **options)


# --- examples worked by hand from the rules ---


@pytest.mark.parametrize(
    ("size", "allocated", "reserved"),
    [
        (1, 512, 2 * MIB),
        (512, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),
        (MIB + 1, MIB + 512, 20 * MIB),
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB, 10 * MIB),
        (10 * MIB + 1, 10 * MIB + 512, 12 * MIB),  # rest 2 MiB - 512 B is > 1 MiB: split off
        (11 * MIB, 12 * MIB, 12 * MIB),  # rest 1 MiB is not > 1 MiB: stays with the block
        (100 * MIB, 100 * MIB, 100 * MIB),
    ],
)
def test_one_block_takes_the_segment_of_its_size_class(size, allocated, reserved):
    result = run(0, sizes=[size])
    assert (result.peak_allocated_bytes, result.peak_reserved_bytes) == (allocated, reserved)
    assert result.num_segments_peak == 1


def test_two_small_blocks_share_a_segment_and_a_third_opens_another():
    result = run(0, 1, 2, sizes=[MIB, MIB, 1])
    assert result.peak_reserved_bytes == 4 * MIB
    assert result.num_segments_peak == 2


def test_a_zero_byte_block_takes_nothing():
    result = run(0, ~0, sizes=[0])
    assert result == AllocatorResult(0, 0, 0, 0, 0, False, -1)


def test_freed_blocks_are_reused_and_stay_reserved():
    result = run(0, ~0, 1, ~1, sizes=[30 * MIB, 29 * MIB + 512 * KIB])
    assert result.peak_reserved_bytes == result.final_reserved_bytes == 30 * MIB
    assert (
        result.peak_allocated_bytes == 30 * MIB
    )  # the second keeps its 512 KiB rest: equal, later
    assert result.index_of_peak == 0
    assert result.final_allocated_bytes == 0


def test_best_fit_takes_the_smallest_block_that_holds_the_request():
    # free: 40 and 12 MiB; 11.5 MiB takes the 12 MiB one, so 40 MiB still fits without a new segment
    sizes = [40 * MIB, 12 * MIB, 11 * MIB + 512 * KIB, 40 * MIB]
    result = run(0, 1, ~0, ~1, 2, 3, sizes=sizes)
    assert result.peak_reserved_bytes == 52 * MIB


def test_a_large_rest_is_split_off_and_serves_the_next_request():
    result = run(0, ~0, 1, 2, sizes=[40 * MIB, 20 * MIB, 20 * MIB])
    assert result.peak_reserved_bytes == 40 * MIB


def test_neighbours_merge_only_inside_their_segment():
    # 4 x 5 MiB fill one 20 MiB segment; two neighbours freed make 10 MiB, two apart do not
    sizes = [5 * MIB] * 4 + [10 * MIB]
    assert run(0, 1, 2, 3, ~1, ~2, 4, sizes=sizes).peak_reserved_bytes == 20 * MIB
    assert run(0, 1, 2, 3, ~0, ~2, 4, sizes=sizes).peak_reserved_bytes == 30 * MIB
    # two 12 MiB segments, both free, never serve 24 MiB
    result = run(0, 1, ~0, ~1, 2, sizes=[12 * MIB, 12 * MIB, 24 * MIB])
    assert result.peak_reserved_bytes == 48 * MIB


def test_pools_do_not_lend_to_each_other():
    result = run(0, ~0, 1, sizes=[20 * MIB, KIB])
    assert result.peak_reserved_bytes == 22 * MIB


def test_a_full_device_gives_cached_segments_back_before_giving_up():
    sizes = [12 * MIB, 24 * MIB]
    result = run(0, ~0, 1, sizes=sizes, capacity_bytes=30 * MIB)
    assert not result.out_of_memory
    assert result.num_retries == 1
    assert result.final_reserved_bytes == 24 * MIB
    assert result.peak_reserved_bytes == 24 * MIB


def test_out_of_memory_is_a_result_and_says_where():
    result = run(0, 1, 2, sizes=[12 * MIB, 24 * MIB, 1], capacity_bytes=30 * MIB)
    assert result.out_of_memory
    assert result.index_of_out_of_memory == 1
    assert result.final_allocated_bytes == 12 * MIB


def test_a_partly_used_segment_is_not_given_back():
    # block 2 pins the 40 MiB segment: its free 30 MiB cannot be traded for a 32 MiB segment
    sizes = [40 * MIB, 30 * MIB, 10 * MIB, 32 * MIB]
    result = run(0, ~0, 1, 2, ~1, 3, sizes=sizes, capacity_bytes=60 * MIB)
    assert result.out_of_memory


def test_expandable_segments_grow_instead_of_fragmenting():
    # two freed neighbours of 12 MiB serve 24 MiB: pages of 20 MiB, 40 MiB in all
    sizes = [12 * MIB, 12 * MIB, 24 * MIB]
    result = run(0, 1, ~0, ~1, 2, sizes=sizes, expandable_segments=True)
    assert result.peak_reserved_bytes == 40 * MIB
    assert result.peak_allocated_bytes == 24 * MIB
    assert result.num_segments_peak == 2


def test_expandable_segments_split_every_rest():
    result = run(0, sizes=[11 * MIB], expandable_segments=True)
    assert result.peak_allocated_bytes == 11 * MIB


def test_expandable_segments_unmap_whole_pages_when_full():
    # 60 MiB in one block freed: 3 pages; a small block then needs 2 MiB of the 61 MiB there are
    sizes = [60 * MIB, KIB]
    result = run(0, ~0, 1, sizes=sizes, capacity_bytes=61 * MIB, expandable_segments=True)
    assert not result.out_of_memory
    assert result.num_retries == 1
    assert result.final_reserved_bytes == 2 * MIB


def test_check_mode_refuses_a_stream_that_frees_twice():
    with pytest.raises(AssertionError, match="not allocated"):
        run(0, ~0, ~0, sizes=[512])


# --- random streams ---

_SIZES = st.one_of(
    st.integers(0, 4 * KIB),
    st.integers(0, 2 * MIB),
    st.integers(MIB, 12 * MIB),
    st.integers(9 * MIB, 64 * MIB),
)


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Random allocations and frees, every block freed in the end."""
    sizes = draw(st.lists(_SIZES, min_size=1, max_size=40))
    order = draw(st.randoms(use_true_random=False))
    events, live = [], []
    for block in range(len(sizes)):
        while live and order.random() < 0.4:
            events.append(~live.pop(order.randrange(len(live))))
        events.append(block)
        live.append(block)
    order.shuffle(live)
    return events + [~block for block in live], sizes


class PlainAllocator:
    """The rules written out over a list of [size, owner] per segment: slow, and nothing shared."""

    def __init__(self) -> None:
        self.segments: list[tuple[bool, list[list]]] = []

    def allocate(self, block: int, request: int) -> None:
        need = max(512, (request + 511) // 512 * 512)
        small = need <= MIB
        fits = [
            (piece[0], number, place)
            for number, (is_small, pieces) in enumerate(self.segments)
            for place, piece in enumerate(pieces)
            if is_small == small and piece[1] is None and piece[0] >= need
        ]
        if not fits:
            own = (need + 2 * MIB - 1) // (2 * MIB) * (2 * MIB)
            size = 2 * MIB if small else 20 * MIB if need < 10 * MIB else own
            self.segments.append((small, [[size, None]]))
            fits = [(size, len(self.segments) - 1, 0)]
        size, number, place = min(fits)
        pieces = self.segments[number][1]
        pieces[place][1] = block
        if (size - need >= 512) if small else (size - need > MIB):
            pieces[place][0] = need
            pieces.insert(place + 1, [size - need, None])

    def free(self, block: int) -> None:
        for _, pieces in self.segments:
            for piece in pieces:
                if piece[1] == block:
                    piece[1] = None
            place = 0
            while place + 1 < len(pieces):
                if pieces[place][1] is None and pieces[place + 1][1] is None:
                    pieces[place][0] += pieces.pop(place + 1)[0]
                else:
                    place += 1

    @property
    def allocated(self) -> int:
        return sum(p[0] for _, pieces in self.segments for p in pieces if p[1] is not None)

    @property
    def reserved(self) -> int:
        return sum(p[0] for _, pieces in self.segments for p in pieces)


@settings(max_examples=150, deadline=None)
@given(streams())
def test_simulator_agrees_with_the_rules_written_out(stream):
    events, sizes = stream
    plain = PlainAllocator()
    peak = 0
    for event in events:
        if event < 0:
            plain.free(~event)
        elif sizes[event]:
            plain.allocate(event, sizes[event])
        peak = max(peak, plain.allocated)
    result = simulate(events, sizes, check=True)
    assert result.peak_reserved_bytes == plain.reserved
    assert result.peak_allocated_bytes == peak
    assert result.final_allocated_bytes == 0
    assert result.num_segments_peak == len(plain.segments)


@settings(max_examples=150, deadline=None)
@given(streams(), st.booleans(), st.one_of(st.none(), st.integers(0, 300 * MIB)))
def test_invariants_hold_after_every_event(stream, expandable, capacity):
    events, sizes = stream
    result = simulate(events, sizes, capacity, expandable_segments=expandable, check=True)
    assert result.peak_allocated_bytes <= result.peak_reserved_bytes
    assert capacity is None or result.peak_reserved_bytes <= capacity
    if not result.out_of_memory:
        assert result.final_allocated_bytes == 0
        live = peak = 0
        for event in events:
            live += sizes[event] if event >= 0 else -sizes[~event]
            peak = max(peak, live)
        assert result.peak_allocated_bytes >= peak
    else:
        assert capacity is not None and result.num_retries >= 1


@settings(max_examples=60, deadline=None)
@given(streams(), st.booleans())
def test_a_capacity_of_the_free_run_changes_nothing(stream, expandable):
    events, sizes = stream
    free = simulate(events, sizes, expandable_segments=expandable)
    bound = simulate(events, sizes, free.peak_reserved_bytes, expandable_segments=expandable)
    assert bound == free
