"""Few points of a long series: every phase's peak stays, and what repeats is kept alike."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from memcalc.engine.series import Span, spans_of, thinned


def test_spans_are_the_stretches_of_equal_phases() -> None:
    assert spans_of("ffbbf") == [Span("f", 0, 2), Span("b", 2, 4), Span("f", 4, 5)]
    assert spans_of("") == []


@settings(max_examples=50, deadline=None)
@given(
    levels=st.lists(st.integers(0, 99), min_size=1, max_size=400),
    cuts=st.lists(st.integers(0, 400), max_size=6),
    most=st.integers(8, 80),
    period=st.integers(1, 30),
)
def test_every_span_keeps_its_ends_and_its_peak(
    levels: list[int], cuts: list[int], most: int, period: int
) -> None:
    phases = [str(sum(at >= cut for cut in cuts)) for at in range(len(levels))]
    kept = thinned(levels, phases, [at // period for at in range(len(levels))], most)
    assert kept == sorted(set(kept)) and set(kept) <= set(range(len(levels)))
    for span in spans_of(phases):
        inside = [at for at in kept if span.begin <= at < span.end]
        assert {span.begin, span.end - 1} <= set(inside)
        assert max(levels[at] for at in inside) == max(levels[span.begin : span.end])
    assert len(kept) <= 3 * (most + len(spans_of(phases)))


def test_layers_that_are_alike_keep_the_same_places() -> None:
    shape = [5, 9, 6, 8, 1, 7, 3, 4]
    count = 60
    levels = [level for _ in range(count) for level in shape]
    layers = [layer for layer in range(count) for _ in shape]
    kept = thinned(levels, ["forward"] * len(levels), layers, 2 * count)
    assert len(kept) < len(levels) / 2
    inner = [
        {at % len(shape) for at in kept if layers[at] == layer} for layer in range(1, count - 1)
    ]
    assert all(places == {1, 4} for places in inner)


def test_a_short_series_is_kept_whole() -> None:
    assert thinned([3, 1, 2], ["f"] * 3, [0, 0, 0], 10) == [0, 1, 2]
