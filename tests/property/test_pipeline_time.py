"""What must hold of every pipeline, whatever its chunks take: drawn by hypothesis."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcalc.engine.parallel.pipeline.actions import Action, Pipe
from memcalc.engine.parallel.pipeline.schedules import chunks_of, rank_actions
from memcalc.engine.timing.pipeline_time import (
    ChunkTime,
    PipelineTime,
    bubble_closed,
    pipeline_time,
)

NAMES = ("gpipe", "1f1b", "interleaved", "zb-h1", "zb-v", "dualpipe")
Case = tuple[str, Pipe, list[ChunkTime], tuple[int, ...], bool]


@st.composite
def pipes(
    draw: st.DrawFn, names: Sequence[str] = NAMES, rounds: tuple[int, int] = (1, 4)
) -> tuple[str, Pipe]:
    """A schedule and a pipe it can run."""
    schedule = draw(st.sampled_from(names))
    pp = draw(st.integers(1, 4))
    vpp = {"interleaved": draw(st.integers(1, 3)), "zb-v": 2, "dualpipe": 2}.get(schedule, 1)
    whole = draw(st.integers(*rounds)) * pp
    if schedule in ("interleaved", "zb-h1"):
        return schedule, Pipe(pp, vpp, whole)
    few = 2 * pp if schedule == "dualpipe" else 1
    return schedule, Pipe(pp, vpp, max(few, whole + draw(st.integers(-1, 1))))


@st.composite
def cases(draw: st.DrawFn, rounds: tuple[int, int] = (1, 4), extras: bool = True) -> Case:
    """Unequal chunks and sends, in whole seconds so that sums are exact."""
    schedule, pipe = draw(pipes(rounds=rounds))
    seconds, more = st.integers(1, 9), st.integers(0, 6 if extras else 0)
    chunks = []
    for _ in range(pipe.pp * pipe.vpp):
        i, w = draw(seconds), draw(seconds)
        chunks.append(ChunkTime(draw(seconds), i + w, i, w, draw(more), draw(more)))
    sends = tuple(draw(st.integers(0, 3)) for _ in chunks[1:])
    return schedule, pipe, chunks, sends, draw(st.booleans())


def timed(case: Case, with_slots: bool = True) -> PipelineTime:
    """The case's time."""
    return pipeline_time(*case, with_slots=with_slots)


def seconds_of(action: Action, case: Case, actions: Sequence[Action]) -> int:
    """What an action takes, extras included."""
    chunk = case[2][action.chunk]
    base = dict(zip("FBIW", chunk[:4], strict=True))[action.kind]
    own = [one for one in actions if one.chunk == action.chunk]
    first = next(one for one in own if one.kind == "F")
    last = [one for one in own if one.kind in "BW"][-1]
    return (
        base
        + (chunk.first_forward_extra_s if action == first else 0)
        + (chunk.last_backward_extra_s if action == last else 0)
    )


def relaxed(case: Case) -> dict[Action, int]:
    """Starts of all actions, found the slow way: raised until nothing waits for anything any more."""
    schedule, pipe, chunks, sends, blocking = case
    lists = [rank_actions(schedule, pipe, rank) for rank in range(pipe.pp)]
    rank_of = {c: rank for rank in range(pipe.pp) for c in chunks_of(schedule, pipe, rank)}
    takes = {one: seconds_of(one, case, own) for own in lists for one in own}
    starts = dict.fromkeys(takes, 0)

    def sent(action: Action, to: int) -> int:
        between = 0 <= to < len(chunks) and rank_of[action.chunk] != rank_of[to]
        return sends[min(action.chunk, to)] if between else 0

    def leaves(action: Action) -> int:
        """Seconds its rank is taken after computing."""
        to = {"F": action.chunk + 1, "W": action.chunk}.get(action.kind, action.chunk - 1)
        return sent(action, to) if blocking else 0

    waits: list[tuple[Action, Action, int]] = []  # earlier, later, least seconds between starts
    for own in lists:
        waits += [(a, b, takes[a] + leaves(a)) for a, b in zip(own, own[1:], strict=False)]
    for kind, chunk, batch in takes:
        later = Action(kind, chunk, batch)
        step = -1 if kind == "F" else 1
        for other in [] if kind == "W" else ["F"] if kind == "F" else ["B", "I"]:
            source = Action(other, chunk + step, batch)
            if source in takes:
                waits.append((source, later, takes[source] + sent(source, chunk)))
    changed = True
    while changed:
        changed = False
        for earlier, later, least in waits:
            if starts[earlier] + least > starts[later]:
                starts[later] = starts[earlier] + least
                changed = True
    return starts


@settings(max_examples=60, deadline=None)
@given(cases(rounds=(1, 3)))
def test_every_start_is_the_earliest_that_can_be(case: Case) -> None:
    """Against relaxation of all constraints, which knows no order of its own."""
    assert {slot.action: slot.start_s for slot in timed(case).slots} == relaxed(case)


@settings(max_examples=100, deadline=None)
@given(cases())
def test_no_step_is_shorter_than_its_work_or_its_chain(case: Case) -> None:
    schedule, pipe, chunks, sends, _ = case
    result = timed(case)
    assert result.span_s >= result.ideal_s == max(result.busy_s)
    assert result.bubble_s == result.span_s - result.ideal_s >= 0
    down = sum(chunk.forward_s for chunk in chunks)
    up = sum(min(chunk.backward_s, chunk.input_s) for chunk in chunks)
    rank_of = {c: rank for rank in range(pipe.pp) for c in chunks_of(schedule, pipe, rank)}
    crossed = sum(s for c, s in enumerate(sends) if rank_of[c] != rank_of[c + 1])
    assert result.span_s >= down + up + 2 * crossed + chunks[0].weight_s
    assert result.span_s == max(slot.end_s for slot in result.slots)


@settings(max_examples=100, deadline=None)
@given(cases())
def test_a_rank_computes_one_action_after_another(case: Case) -> None:
    result = timed(case)
    for rank, busy in enumerate(result.busy_s):
        own = [slot for slot in result.slots if slot.rank == rank]
        assert [slot.action for slot in own] == list(rank_actions(case[0], case[1], rank))
        assert sum(slot.end_s - slot.start_s for slot in own) == busy
        assert all(a.end_s <= b.start_s for a, b in zip(own, own[1:], strict=False))


@settings(max_examples=100, deadline=None)
@given(cases(), st.data())
def test_nothing_starts_later_when_something_gets_faster(case: Case, data: st.DataObject) -> None:
    """With a fixed order there are no anomalies, unlike where a free worker takes what is ready."""
    schedule, pipe, chunks, sends, blocking = case
    at = data.draw(st.integers(0, len(chunks) - 1))
    f, b, i, w, first, last = chunks[at]
    faster = [*chunks]
    i, w = data.draw(st.integers(0, i)), data.draw(st.integers(0, w))
    faster[at] = ChunkTime(data.draw(st.integers(0, f)), i + w, i, w, first, last)
    nearer = tuple(data.draw(st.integers(0, send)) for send in sends)
    before, after = timed(case), timed((schedule, pipe, faster, nearer, blocking))
    assert after.span_s <= before.span_s
    for a, b in zip(before.slots, after.slots, strict=True):
        assert b.start_s <= a.start_s and b.end_s <= a.end_s
    assert timed((schedule, pipe, chunks, sends, False)).span_s <= before.span_s


@settings(max_examples=60, deadline=None)
@given(cases(rounds=(13, 30)))
def test_long_steps_equal_the_whole_simulation(case: Case) -> None:
    """Of whole seconds: a difference of one would show. Twelve micro-batches a rank and more are
    extrapolated where the schedule has become steady."""
    assert timed(case, with_slots=False) == timed(case)._replace(slots=())


@settings(max_examples=40, deadline=None)
@given(cases(rounds=(13, 40)), st.floats(1e-6, 10.0), st.floats(0.9, 1.1))
def test_long_steps_of_any_seconds_equal_it_as_sums_of_floats_do(
    case: Case, unit: float, uneven: float
) -> None:
    schedule, pipe, chunks, sends, blocking = case
    scaled = [
        ChunkTime(*(unit * uneven**number * one for one in chunk))
        for number, chunk in enumerate(chunks)
    ]
    case = schedule, pipe, scaled, tuple(unit * send for send in sends), blocking
    short, whole = timed(case, with_slots=False), timed(case)
    assert short.span_s == pytest.approx(whole.span_s, rel=1e-9)
    assert short.busy_s == pytest.approx(whole.busy_s, rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    pipes(names=("gpipe", "1f1b", "interleaved", "zb-h1"), rounds=(1, 30)),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 9),
)
def test_equal_stages_wait_as_the_closed_form_says(
    drawn: tuple[str, Pipe], f: int, i: int, w: int
) -> None:
    schedule, pipe = drawn
    chunk = ChunkTime(f, i + w, i, w)
    result = pipeline_time(schedule, pipe, [chunk] * (pipe.pp * pipe.vpp))
    assert result.ideal_s == pipe.batches * pipe.vpp * (f + i + w)
    assert result.bubble_s == bubble_closed(schedule, *pipe, chunk)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["gpipe", "1f1b"]),
    st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), min_size=1, max_size=5),
)
def test_with_many_micro_batches_the_share_of_the_bubble_vanishes(
    schedule: str, seconds: list[tuple[int, int]]
) -> None:
    """Without sends the others wait for the busiest stage. In GPipe, whose forwards are all over
    before its backwards begin, that needs one stage that is longest in both.
    """
    if schedule == "gpipe":
        seconds = [(f, 2 * f) for f, _ in seconds]
    chunks = [ChunkTime(*one) for one in seconds]
    shares = []
    for m in (32, 1024, 32768):
        result = pipeline_time(schedule, Pipe(len(chunks), 1, m), chunks)
        shares.append(result.bubble_s / result.ideal_s)
    assert shares[2] <= shares[1] <= shares[0]
    assert shares[2] < 5 * 100 / 32768 + 1e-9


@settings(max_examples=40, deadline=None)
@given(cases(rounds=(1, 4), extras=False), st.integers(1, 3))
def test_seconds_scale(case: Case, factor: int) -> None:
    """Twice as long chunks and sends: everything takes twice as long."""
    schedule, pipe, chunks, sends, blocking = case
    longer = [ChunkTime(*(factor * one for one in chunk)) for chunk in chunks]
    scaled = pipeline_time(schedule, pipe, longer, tuple(factor * s for s in sends), blocking)
    base = timed(case, with_slots=False)
    assert scaled.span_s == factor * base.span_s
    assert scaled.busy_s == tuple(factor * one for one in base.busy_s)
