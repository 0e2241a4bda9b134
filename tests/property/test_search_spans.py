"""Closed forms of schedules against the step simulated action by action, on random stages."""

from __future__ import annotations

import random

import numpy as np
import pytest

from memcalc.engine.parallel.pipeline.actions import Pipe
from memcalc.engine.search.spans import one_f_one_b_s
from memcalc.engine.search.stage_rows import enough, stage_rows
from memcalc.engine.search.waves import Chunks, interleaved_s
from memcalc.engine.timing.pipeline_time import ChunkTime, pipeline_time
from tests.draws import draws

_RELATIVE = 1e-9


def _stages(choose: random.Random, count: int) -> tuple[list[float], list[float]]:
    """Seconds of forwards and backwards: near each other, or not at all; ends longer."""
    spread = choose.choice([0.0, 0.01, 0.3, 3.0])
    forward = [1 + spread * choose.random() for _ in range(count)]
    backward = [2 + spread * choose.random() for _ in range(count)]
    if choose.random() < 0.4:
        forward[0] *= choose.choice([1.05, 3])
        backward[-1] *= choose.choice([1.05, 4])
    return forward, backward


@pytest.mark.parametrize("seed", range(draws(300)))
def test_one_forward_one_backward(seed):
    choose = random.Random(seed)
    ranks = choose.choice([2, 3, 4, 5, 8, 16])
    batches = choose.randint(1, 4 * ranks)
    forward, backward = _stages(choose, ranks)
    sends = [choose.choice([0, 0.1, 1]) * choose.random() for _ in range(ranks - 1)]
    chunks = [ChunkTime(*one) for one in zip(forward, backward, strict=True)]
    whole = pipeline_time("1f1b", Pipe(ranks, 1, batches), chunks, sends, True).span_s
    ahead = np.array(forward) + np.array([*sends, 0])
    behind = np.array(backward) + np.array([0, *sends])
    found = one_f_one_b_s(ahead[:, None], behind[:, None], np.array([batches]))
    assert found[0] == pytest.approx(whole, rel=_RELATIVE)


@pytest.mark.parametrize("seed", range(draws(150)))
def test_interleaved(seed):
    choose = random.Random(seed)
    ranks, own = choose.choice([2, 3, 4, 8]), choose.choice([2, 3, 4])
    batches = ranks * choose.randint(1, 30)
    forward, backward = _stages(choose, ranks * own)
    send = choose.choice([0, 0.1, 1, 5]) * choose.random()
    chunks = [ChunkTime(*one) for one in zip(forward, backward, strict=True)]
    whole = pipeline_time("interleaved", Pipe(ranks, own, batches), chunks, send).span_s
    of = [[chunk * ranks + rank for rank in range(ranks)] for chunk in range(own)]
    lanes = (np.array(one)[:, None] for one in (forward, backward))
    found = interleaved_s(Chunks(of, *lanes, np.array([send])), np.array([batches]))
    assert found[0] == pytest.approx(whole, rel=_RELATIVE)


def test_lanes_of_different_steps_do_not_touch():
    choose = random.Random(5)
    batches = np.array([4, 40, 8, 400])
    forward, backward = (np.array([_stages(choose, 8)[at] for _ in range(4)]).T for at in (0, 1))
    of, send = [[0, 1, 2, 3], [4, 5, 6, 7]], np.array([0.0, 0.2, 0.1, 0.4])
    together = interleaved_s(Chunks(of, forward, backward, send), batches)
    for lane in range(4):
        own = slice(lane, lane + 1)
        alone = Chunks(of, forward[:, own], backward[:, own], send[own])
        assert interleaved_s(alone, batches[own])[0] == pytest.approx(together[lane], rel=1e-12)


@pytest.mark.parametrize("pp", [2, 3, 5, 8, 16])
@pytest.mark.parametrize("schedule", ["1f1b", "interleaved"])
def test_few_micro_batches_show_every_row(pp, schedule):
    for vpp in (1,) if schedule == "1f1b" else (2, 3, 4):
        count = pp * vpp
        classes = (0, *(1,) * (count - 2), 2)
        for rank in {0, 1, pp // 2, pp - 1}:
            for times in (1, 2, 3, 4, 6):
                pipe = Pipe(pp, vpp, times * pp + (schedule == "1f1b"))
                whole = stage_rows("megatron", schedule, pipe, rank, classes)
                short = enough(schedule, pipe, rank)
                few = stage_rows("megatron", schedule, short, rank, classes)
                assert set(whole.rows) == set(few.rows)
                assert whole[1:] == few[1:]
