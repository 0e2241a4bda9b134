"""DDP and split optimizer states: a rank's step beside PyTorch's own reducer and ZeroRedundancyOptimizer.

As test_fsdp2.py, on the fake process group: peaks, categories, states, saved bytes and every allocation.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from memcalc.engine.memory import step_memory
from memcalc.engine.parallel.data.ddp import partition
from memcalc.engine.states import all_leaves
from memcalc.harness.ranks.layout import Layout
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.training import TrainingSetup
from tests.draws import drawn
from tests.harness.models import GPT2, LLAMA
from tests.oracle.support.data_parallel import (
    differences,
    drawn_small,
    engine_plan,
    first_difference,
)
from tests.oracle.support.rank import RankTrace
from tests.oracle.support.rank_draw import RankSetup
from tests.oracle.support.rank_tracker import RankEvent
from tests.oracle.support.zero_redundancy import elements_by_rank, run_split

#: Drawn setups; a summary counts those that are exact.
DRAWN = drawn_small(6, 10, "ddp")
#: Number of a drawn setup: why the engine's bytes are not PyTorch's there. None is known.
RESIDUALS: dict[int, str] = {}
BF16 = TrainingSetup(seq_len=24, micro_batch_size=2, precision="bf16")
#: More than one bucket: 25 MiB of fp32 gradients are 6.5 M elements.
WIDE = replace(LLAMA, vocab_size=9000, hidden_size=640, intermediate_size=2400)
TIED = replace(LLAMA, vocab_size=1000, hidden_size=192, tie_word_embeddings=True)


@pytest.mark.parametrize("number", drawn(len(DRAWN)))
def test_a_drawn_step_is_pytorchs_own(number: int) -> None:
    """Worlds of 2, 8 and 64; with and without bucket views, accumulation, gradients set to None."""
    setup = DRAWN[number]
    plan, trace = engine_plan(setup), setup.run()
    if number in RESIDUALS:
        assert abs(step_memory(plan).peak_bytes / trace.peak - 1) < 0.005, setup.name
        return
    assert differences(plan, trace) == {}, setup.name
    assert first_difference(plan, trace) == "", setup.name


def test_drawn_setups_have_every_choice() -> None:
    assert {one.layout.dp for one in DRAWN} == {2, 8, 64}
    assert {one.setup.grad_accum_steps for one in DRAWN} == {1, 2, 3}
    assert {one.bucket_views for one in DRAWN} == {True, False}
    assert {one.setup.set_to_none for one in DRAWN} == {True, False}
    assert all(RESIDUALS.values()) and not RESIDUALS.keys() - range(len(DRAWN))


def test_the_first_of_two_micro_batches_can_have_the_peak() -> None:
    """A tied weight's gradients are summed at the end of backward: in the first micro-batch all others
    are still there, in the second they are in the buckets."""
    setup = RankSetup(TIED, replace(BF16, grad_accum_steps=2, recompute="full"), Layout(dp=2))
    plan, trace = engine_plan(setup), setup.run()
    assert differences(plan, trace) == {}
    last = max(live for live, event in _last_batch(trace) if event.phase == "backward")
    assert last < trace.phases["backward"] == trace.peak


def _last_batch(trace: RankTrace) -> list[tuple[int, RankEvent]]:
    lives = list(trace.live())
    starts = [
        i for i, (_, event) in enumerate(lives)
        if event.phase == "forward" and (i == 0 or lives[i - 1][1].phase != "forward")
    ]  # fmt: skip
    return lives[starts[-1] :]


@pytest.mark.parametrize("model", [WIDE, replace(WIDE, tie_word_embeddings=True), GPT2])
def test_buckets_are_the_reducers_own(model: ModelConfig) -> None:
    setup = RankSetup(model, replace(BF16, precision="fp32"), Layout(dp=2))
    plan, trace = engine_plan(setup), setup.run()
    buckets = plan.strategy.buckets(plan)
    assert len(buckets) >= (3 if model is WIDE else 1)
    assert sum(buckets) == trace.bytes.states["gradients"]
    before = Counter(alloc.nbytes for alloc in trace.bytes.initial)
    assert not Counter(buckets) - before
    leaves = all_leaves(*plan.structure(True))
    held = Counter(4 * leaf.numel.value(plan.values) for leaf in leaves)
    others = before - Counter(buckets)
    assert others - held - held - held == Counter([8 * 2 * 24])  # weights, two moments; token ids


SPLIT = {
    "two": RankSetup(LLAMA, replace(BF16, precision="bf16-mixed"), Layout(dp=2)),
    "eight, clipped, accumulated": RankSetup(
        WIDE, replace(BF16, grad_accum_steps=2, grad_clip=True), Layout(dp=8)
    ),
    "more ranks than tensors": RankSetup(GPT2, replace(BF16, optimizer_impl="loop"), Layout(dp=64)),
}


@pytest.mark.parametrize("name", SPLIT)
def test_split_states_are_those_of_zero_redundancy_optimizer(name: str) -> None:
    """The engine's rank is the one that steps most elements."""
    setup = SPLIT[name]
    elements = elements_by_rank(setup)
    plan = engine_plan(setup, zero=1)
    leaves = all_leaves(*plan.structure(plan.keeps_gradients))
    parts = partition(leaves, setup.layout.dp, plan.values)
    assert [sum(leaf.numel.value(plan.values) for leaf in part) for part in parts] == elements
    rank = elements.index(max(elements))
    trace = run_split(replace(setup, rank=rank))
    assert differences(plan, trace) == {}
    assert first_difference(plan, trace) == ""


def test_a_rank_with_nothing_to_step_takes_no_more() -> None:
    setup = SPLIT["more ranks than tensors"]
    elements = elements_by_rank(setup)
    assert elements[-1] == 0 < elements[0]
    trace = run_split(replace(setup, rank=63))
    ours = step_memory(engine_plan(setup, zero=1))
    assert trace.bytes.states["optimizer"] == 0
    assert trace.peak == ours.peak_bytes - ours.states.optimizer_bytes
