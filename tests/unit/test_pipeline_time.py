"""Times of pipelines: by hand, by closed forms, and of long steps against the whole simulation."""

from __future__ import annotations

import time
from collections.abc import Sequence
from fractions import Fraction

import pytest

from memcalc.engine.parallel.pipeline.actions import Action, Pipe
from memcalc.engine.parallel.pipeline.pipeline_megatron import megatron_step
from memcalc.engine.parallel.pipeline.pipeline_nanotron import nanotron_step
from memcalc.engine.parallel.pipeline.pipeline_program import Step
from memcalc.engine.parallel.pipeline.pipeline_torch import torch_step
from memcalc.engine.timing.pipeline_time import (
    ChunkTime,
    PipelineTime,
    bubble_closed,
    pipeline_time,
)
from memcalc.errors import ConfigError

#: Unequal on purpose: a light first stage, a heavy last one.
TAPERED = [ChunkTime(5, 10), ChunkTime(7, 13), ChunkTime(7, 14), ChunkTime(9, 16)]


def drawn(schedule: str, chunks: Sequence[ChunkTime], m: int, **options: float) -> list[str]:
    """Each rank's actions as "F0 0-1", in order."""
    result = pipeline_time(schedule, Pipe(2, 1, m), chunks, with_slots=True, **options)
    lines = ["", ""]
    for rank, action, start, end in result.slots:
        lines[rank] += f" {action.kind}{action.batch} {start:g}-{end:g}"
    return lines


def test_gpipe_by_hand() -> None:
    """Two stages; a send takes 1: beside compute, and in the way of it."""
    chunks = [ChunkTime(1, 2), ChunkTime(3, 4)]
    assert drawn("gpipe", chunks, 2, send_s=1) == [
        " F0 0-1 F1 1-2 B0 13-15 B1 17-19",
        " F0 2-5 F1 5-8 B0 8-12 B1 12-16",
    ]
    assert drawn("gpipe", chunks, 2, send_s=1, blocking=True) == [
        " F0 0-1 F1 2-3 B0 13-15 B1 18-20",
        " F0 2-5 F1 5-8 B0 8-12 B1 13-17",
    ]


def test_1f1b_by_hand() -> None:
    """The first stage's third forward waits for its first backward, the second stage for that."""
    chunks = [ChunkTime(1, 2), ChunkTime(1, 3)]
    result = pipeline_time("1f1b", Pipe(2, 1, 3), chunks, with_slots=True)
    assert drawn("1f1b", chunks, 3) == [
        " F0 0-1 F1 1-2 B0 5-7 F2 7-8 B1 9-11 B2 13-15",
        " F0 1-2 B0 2-5 F1 5-6 B1 6-9 F2 9-10 B2 10-13",
    ]
    assert (result.span_s, result.ideal_s, result.bubble_s) == (15, 12, 3)
    assert result.busy_s == (9, 12)


def test_zero_bubble_by_hand() -> None:
    """A gradient goes back before that of the weights is computed: Qi et al., fig. 2, two stages."""
    chunks = [ChunkTime(1, 2)] * 2
    assert drawn("zb-h1", chunks, 2) == [
        " F0 0-1 F1 1-2 I0 3-4 W0 4-5 I1 5-6 W1 6-7",
        " F0 1-2 I0 2-3 F1 3-4 I1 4-5 W0 5-6 W1 6-7",
    ]


@pytest.mark.parametrize("pp", [2, 3, 4, 8])
@pytest.mark.parametrize("m", [1, 2, 5, 8, 24, 500])
@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_equal_stages_wait_p_minus_1_of_m(schedule: str, pp: int, m: int) -> None:
    chunk = ChunkTime(2, 5)
    result = pipeline_time(schedule, Pipe(pp, 1, m), [chunk] * pp)
    assert result.ideal_s == m * 7
    assert result.bubble_s == bubble_closed(schedule, pp, 1, m, chunk)
    assert Fraction(result.bubble_s, result.ideal_s) == Fraction(pp - 1, m)


@pytest.mark.parametrize("vpp", [1, 2, 3, 5])
@pytest.mark.parametrize(("pp", "m"), [(2, 2), (2, 6), (4, 4), (4, 24), (3, 300), (8, 32)])
def test_interleaving_divides_the_wait_by_v(pp: int, m: int, vpp: int) -> None:
    chunk = ChunkTime(2, 5)
    result = pipeline_time("interleaved", Pipe(pp, vpp, m), [chunk] * (pp * vpp))
    assert result.bubble_s == bubble_closed("interleaved", pp, vpp, m, chunk)
    assert Fraction(result.bubble_s, result.ideal_s) == Fraction(pp - 1, m * vpp)


@pytest.mark.parametrize(
    "seconds", [(1, 1, 1), (2, 3, 1), (3, 2, 2), (1, 1, 2), (3, 4, 4), (3, 1, 2)]
)
@pytest.mark.parametrize(("pp", "m"), [(2, 4), (4, 4), (4, 16), (3, 300)])
def test_gradients_of_weights_fill_the_waits(
    pp: int, m: int, seconds: tuple[int, int, int]
) -> None:
    """Qi et al. 2023, table 1: (p - 1) (F + I - W), for W no longer than F or I."""
    f, i, w = seconds
    chunk = ChunkTime(f, i + w, i, w)
    result = pipeline_time("zb-h1", Pipe(pp, 1, m), [chunk] * pp)
    assert result.ideal_s == m * (f + i + w)
    assert result.bubble_s == bubble_closed("zb-h1", pp, 1, m, chunk)
    assert w > min(f, i) or result.bubble_s == (pp - 1) * (f + i - w)
    assert result.bubble_s <= pipeline_time("1f1b", Pipe(pp, 1, m), [chunk] * pp).bubble_s


def test_a_v_waits_a_third_of_1f1b() -> None:
    """Torch's orders with F = I = W: p - 1 of a half stage's forwards, where 1F1B waits 3 (p - 1)."""
    for schedule in ("zb-v", "dualpipe"):
        result = pipeline_time(schedule, Pipe(4, 2, 16), [ChunkTime(1, 2)] * 8)
        assert result.bubble_s == 3
    assert bubble_closed("1f1b", 4, 1, 16, ChunkTime(2, 4)) == 18


def test_without_halves_backward_is_split_in_two() -> None:
    given = [ChunkTime(2, 6, 3, 3)] * 4
    for halves in ((None, None), (3, None), (None, 3)):
        chunks = [ChunkTime(2, 6, *halves)] * 4
        pipe = Pipe(4, 1, 8)
        assert pipeline_time("zb-h1", pipe, chunks) == pipeline_time("zb-h1", pipe, given)


def test_the_busiest_rank_is_what_a_bubble_is_measured_by() -> None:
    result = pipeline_time("1f1b", Pipe(4, 1, 12), TAPERED)
    assert result.busy_s == (12 * 15, 12 * 20, 12 * 21, 12 * 25)
    assert result.ideal_s == 300
    # the last stage starts after three forwards and ends before three backwards, never idle between
    assert result.bubble_s == 5 + 7 + 7 + 14 + 13 + 10


def test_sends_of_1f1b_wait_in_every_micro_batch() -> None:
    """The first of p stages has p micro-batches under way, and each crosses 2 (p - 1) boundaries before
    another may start: 2 (p - 1) / p sends a micro-batch, 6 / 4 of 1 s, although they block nobody.
    """
    pipe, chunks = Pipe(4, 1, 400), [ChunkTime(10, 20)] * 4
    free, paid = (pipeline_time("1f1b", pipe, chunks, send) for send in (0, 1))
    per_micro_batch = (paid.span_s - free.span_s) / 400
    assert per_micro_batch == pytest.approx(6 / 4, rel=0.02)
    on_the_last = pipeline_time("1f1b", pipe, chunks, (0, 0, 1))
    assert free.span_s < on_the_last.span_s <= paid.span_s
    assert pipeline_time("1f1b", pipe, chunks, 1, blocking=True).span_s >= paid.span_s


def test_chunks_of_one_rank_need_no_send() -> None:
    pipe, chunks = Pipe(2, 2, 6), [ChunkTime(1, 2)] * 4
    free = pipeline_time("zb-v", pipe, chunks)
    assert pipeline_time("zb-v", pipe, chunks, (0, 99, 0)) == free
    assert pipeline_time("zb-v", pipe, chunks, (0, 99, 1)).span_s > free.span_s


def test_first_and_last_micro_batch_may_take_longer() -> None:
    pipe, plain = Pipe(2, 1, 40), ChunkTime(1, 2)
    base = pipeline_time("1f1b", pipe, [plain] * 2)
    first = plain._replace(first_forward_extra_s=7)
    late = plain._replace(last_backward_extra_s=7)
    assert pipeline_time("1f1b", pipe, [first, plain]).span_s == base.span_s + 7
    assert pipeline_time("1f1b", pipe, [plain, late]).span_s == base.span_s + 7
    assert pipeline_time("1f1b", pipe, [late, late]).busy_s == (127, 127)
    # the last stage idles while the first computes its last backward: 2 seconds of it are free
    only_last = pipeline_time("gpipe", pipe, [plain, plain._replace(last_backward_extra_s=7)])
    assert only_last.span_s == base.span_s + 7
    split = pipeline_time("zb-h1", pipe, [late] * 2, with_slots=True)
    longer = [slot for slot in split.slots if slot.end_s - slot.start_s == 8]
    assert [(slot.rank, *slot.action) for slot in longer] == [(0, "W", 0, 39), (1, "W", 1, 39)]


LONG = [
    ("gpipe", Pipe(4, 1, 400)),
    ("1f1b", Pipe(4, 1, 400)),
    ("1f1b", Pipe(5, 1, 401)),
    ("interleaved", Pipe(4, 2, 400)),
    ("zb-h1", Pipe(4, 1, 400)),
    ("zb-v", Pipe(4, 2, 400)),
    ("dualpipe", Pipe(4, 2, 401)),
]


@pytest.mark.parametrize(("schedule", "pipe"), LONG)
@pytest.mark.parametrize("send", [0, 2])
@pytest.mark.parametrize("blocking", [False, True])
@pytest.mark.parametrize("heavy", ["none", "first", "last", "slightly"])
def test_a_long_step_is_a_short_one_and_periods(
    schedule: str, pipe: Pipe, send: int, blocking: bool, heavy: str
) -> None:
    """What is extrapolated equals the whole simulation, to the last unit."""
    n = pipe.pp * pipe.vpp
    chunks = [ChunkTime(1000, 2000, 1100, 900, 300, 500)] * n
    if heavy != "none":
        more = 3 if heavy == "slightly" else 217
        at = -1 if heavy == "last" else 0
        f, b, i, w, *rest = chunks[at]
        chunks[at] = ChunkTime(f + more, b + 2 * more, i + more, w + more, *rest)
    long = pipeline_time(schedule, pipe, chunks, send, blocking)
    whole = pipeline_time(schedule, pipe, chunks, send, blocking, with_slots=True)
    assert long == whole._replace(slots=())


MILLIONS = [
    ("gpipe", Pipe(10, 1, 10**6)),
    ("1f1b", Pipe(10, 1, 10**6 + 1)),
    ("interleaved", Pipe(5, 2, 10**6)),
    ("zb-h1", Pipe(10, 1, 10**6)),
    ("zb-v", Pipe(5, 2, 10**6)),
    ("dualpipe", Pipe(5, 2, 10**6)),
]


@pytest.mark.parametrize(("schedule", "pipe"), MILLIONS)
def test_a_million_micro_batches_take_no_time(schedule: str, pipe: Pipe) -> None:
    """A whole simulation takes a minute and gigabytes. The second pipe drifts: its first stage is a
    hair slower, so that others wait for it only after thousands of micro-batches."""
    heavy = [ChunkTime(1.0, 2.0)] * 9 + [ChunkTime(1.1, 2.3)]
    drifting = [ChunkTime(1.0001, 2.0002)] + [ChunkTime(1.0, 2.0)] * 9
    began = time.process_time()
    for chunks in (heavy, drifting):
        for send, blocking in ((0.0, False), (0.01, False), (0.01, True)):
            result = pipeline_time(schedule, pipe, chunks, send, blocking)
            assert result.span_s >= result.ideal_s > 3e6
            assert result.bubble_s < 0.02 * result.ideal_s
    assert time.process_time() - began < 1.5


STEPS = {
    "megatron 1f1b": (megatron_step, "1f1b", Pipe(4, 1, 8)),
    "megatron 1f1b, few micro-batches": (megatron_step, "1f1b", Pipe(4, 1, 3)),
    "megatron interleaved": (megatron_step, "interleaved", Pipe(2, 2, 8)),
    "nanotron 1f1b": (nanotron_step, "1f1b", Pipe(4, 1, 8)),
    "nanotron gpipe": (nanotron_step, "gpipe", Pipe(4, 1, 8)),
    "torch 1f1b": (torch_step, "1f1b", Pipe(4, 1, 8)),
    "torch zb-v": (torch_step, "zb-v", Pipe(2, 2, 8)),
}


@pytest.mark.parametrize("case", STEPS)
def test_the_steps_of_every_runtime_can_be_timed(case: str) -> None:
    """Lists instead of a name: what a rank's instructions compute, in their order."""
    step_of, schedule, pipe = STEPS[case]
    steps: list[Step] = [step_of(schedule, pipe, rank) for rank in range(pipe.pp)]
    orders = [[one for one in step.instructions if isinstance(one, Action)] for step in steps]
    by_lists = pipeline_time(orders, pipe, TAPERED, 1, with_slots=True)
    assert by_lists == pipeline_time(schedule, pipe, TAPERED, 1, with_slots=True)


def test_arrays_are_timed_element_by_element() -> None:
    import numpy

    factors = numpy.array([0.5, 1.0, 3.0])
    pipe = Pipe(4, 1, 60)
    chunks = [
        ChunkTime(numpy.array([5.0, 6.0, 7.0]), one.backward_s * factors, None, None, 0.5, factors)
        for one in TAPERED
    ]
    together = pipeline_time("1f1b", pipe, chunks, 0.25 * factors)
    for at, factor in enumerate(factors):
        alone = pipeline_time(
            "1f1b",
            pipe,
            [
                ChunkTime(5.0 + at, one.backward_s * factor, None, None, 0.5, factor)
                for one in TAPERED
            ],
            0.25 * factor,
        )
        for name in ("span_s", "ideal_s", "bubble_s"):
            assert getattr(together, name)[at] == pytest.approx(getattr(alone, name), rel=1e-12)
        assert [own[at] for own in together.busy_s] == pytest.approx(alone.busy_s, rel=1e-12)


def test_one_rank_never_waits() -> None:
    assert pipeline_time("1f1b", Pipe(1, 1, 7), [ChunkTime(1, 2)]) == PipelineTime(21, 21, 0, (21,))


def test_what_cannot_be_timed_says_why() -> None:
    pipe, chunk = Pipe(2, 1, 2), ChunkTime(1, 2)
    with pytest.raises(ConfigError, match="chunks: got 3; rule: one time for each of the 2 x 1"):
        pipeline_time("1f1b", pipe, [chunk] * 3)
    with pytest.raises(ConfigError, match="send_s: got 2 for 2 chunks"):
        pipeline_time("1f1b", pipe, [chunk] * 2, (0.0, 0.0))
    first, second = Action("F", 0, 0), Action("B", 0, 0)
    other = [Action("F", 1, 0), Action("B", 1, 0)]
    with pytest.raises(ConfigError, match="rank 0 never gets what .*'B', chunk=0.* needs"):
        pipeline_time([[second, first], other], pipe, [chunk] * 2)
    with pytest.raises(ConfigError, match=r"chunk 1 is run by ranks \[\]; rule: by one rank"):
        pipeline_time([[first, second], []], pipe, [chunk] * 2)
    with pytest.raises(ConfigError, match="a closed form is known of"):
        bubble_closed("zb-v", 2, 2, 4, chunk)
    with pytest.raises(ConfigError, match="m: got 5 with interleaved"):
        bubble_closed("interleaved", 2, 2, 5, chunk)
