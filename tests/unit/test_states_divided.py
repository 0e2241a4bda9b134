"""States over data-parallel ranks: orders that always hold, the allocator's program, what is refused."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from itertools import accumulate, pairwise, product
from typing import Any

import pytest

from memcalc import TrainingSetup, estimate
from memcalc.engine.make_plan import plan_of
from memcalc.engine.memory import step_memory
from memcalc.engine.parallel.data.ddp import BUCKET_BYTES, FIRST_BUCKET_BYTES, Ddp, bucket_bytes
from memcalc.engine.parallel.data.fsdp2 import Fsdp2
from memcalc.engine.plan import Plan
from memcalc.engine.program import Stream, training_program
from memcalc.errors import ConfigError
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.models import load_model
from memcalc.inputs.parallel import ParallelPlan
from tests.harness.models import GPT2, LLAMA

SETUP = TrainingSetup(seq_len=48, micro_batch_size=2)
DEEP = replace(LLAMA, num_hidden_layers=9, tie_word_embeddings=True)


def _plan(config: ModelConfig = LLAMA, setup: TrainingSetup = SETUP, **layout: Any) -> Plan:
    return plan_of(config, setup, None, ParallelPlan(**layout))


def _second_step(stream: Stream) -> list[int]:
    """Bytes alive after each event of the second optimizer step."""
    lives = list(
        accumulate(stream.sizes[e] if e >= 0 else -stream.sizes[~e] for e in stream.events)
    )
    names = [name for _, name in stream.phases]
    first = names.index("optimizer states") + 2
    return lives[stream.phases[first][0] :]


LAYOUTS: dict[str, dict[str, Any]] = {
    "ddp": {"dp": 8},
    "zero 1": {"dp": 8, "zero": 1},
    "zero 2": {"dp": 8, "zero": 2},
    "fsdp": {"dp": 8, "fsdp": True},
    "fsdp on 2 of 8": {"dp": 8, "fsdp": True, "reshard": 2},
    "fsdp in groups": {"dp": 64, "fsdp": True, "shard": 8},
}


@pytest.mark.parametrize("accum", [1, 2, 3])
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_allocators_program_requests_what_the_timeline_says(name: str, accum: int) -> None:
    """The program plays whole steps, `step_memory` measures the micro-batch that peaks."""
    for config, precision, set_to_none in product(
        (DEEP, GPT2), ("bf16", "bf16-mixed"), (True, False)
    ):
        setup = replace(
            SETUP, grad_accum_steps=accum, precision=precision, set_to_none=set_to_none,
            recompute="full",
        )  # fmt: skip
        plan = _plan(config, setup, **LAYOUTS[name])
        lives = _second_step(training_program(plan, ()))
        said = step_memory(plan)
        assert max(lives) == said.peak_bytes == sum(said.breakdown.values())
        kept = said.states.gradient_bytes if not set_to_none or name in ("ddp", "zero 1") else 0
        held = said.states.parameter_bytes + said.states.optimizer_bytes + said.input_bytes
        assert lives[-1] == held + kept


@dataclass(frozen=True)
class _EveryFsdp2Block(Fsdp2):
    @property
    def depth(self) -> int:
        return 64


@dataclass(frozen=True)
class _EveryDdpBlock(Ddp):
    @property
    def depth(self) -> int:
        return 64


@pytest.mark.parametrize("name", ["llama-3.2-1b", "gemma-2-2b", "deepseek-v2-lite"])
@pytest.mark.parametrize("layout", ["ddp", "fsdp", "fsdp on 2 of 8"])
def test_a_few_traced_blocks_stand_for_all(layout: str, name: str) -> None:
    """Blocks that alternate, and that differ at the start: every event, against all blocks traced."""
    setup = replace(
        SETUP, grad_accum_steps=2, attention="eager", num_layers=10, recompute="full",
        recompute_layers=8,
    )  # fmt: skip
    few = _plan(load_model(name), setup, **LAYOUTS[layout])
    kind = _EveryDdpBlock if layout == "ddp" else _EveryFsdp2Block
    held = {field.name: getattr(few.strategy, field.name) for field in fields(few.strategy)}
    every = few._replace(strategy=kind(**held))
    ours, theirs = step_memory(few), step_memory(every)
    assert ours.phases == theirs.phases and ours.breakdown == theirs.breakdown
    assert ours.saved_bytes == theirs.saved_bytes
    assert _requests(training_program(few, ())) == _requests(training_program(every, ()))


def _requests(stream: Stream) -> list[tuple[int, list[int]]]:
    """Each allocation with what is freed before the next, in any order."""
    found: list[tuple[int, list[int]]] = []
    for event in stream.events:
        if event >= 0:
            found.append((stream.sizes[event], []))
        else:
            found[-1][1].append(stream.sizes[~event])
    return [(size, sorted(freed)) for size, freed in found]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16-mixed", "bf16-master"])
@pytest.mark.parametrize("ranks", [2, 8, 64])
def test_each_stage_holds_no_more_than_the_one_before(ranks: int, precision: str) -> None:
    """Parameters, gradients and optimizer states of a rank, and the optimizer's phase."""
    setup = replace(SETUP, precision=precision)
    steps = [step_memory(_plan(DEEP, setup, dp=ranks, zero=stage)) for stage in range(4)]
    for less, more in pairwise(reversed(steps)):
        assert less.states.parameter_bytes <= more.states.parameter_bytes
        assert less.states.gradient_bytes <= more.states.gradient_bytes
        assert less.phases["optimizer"] <= more.phases["optimizer"]
        assert _all_states(less) <= _all_states(more)
    assert _all_states(steps[3]) < _all_states(steps[1]) < _all_states(steps[0])


def _all_states(step: Any) -> int:
    held = step.states
    return int(
        held.parameter_bytes + held.gradient_bytes + held.optimizer_bytes + held.master_bytes
    )


@pytest.mark.parametrize("name", ["llama-3.1-8b", "gpt2"])
def test_each_stage_peaks_no_higher_than_the_one_before(name: str) -> None:
    """Of a model whose states weigh more than its activations."""
    setup = TrainingSetup(seq_len=1024, precision="bf16", recompute="full")
    peaks = [
        estimate(name, setup, parallel=ParallelPlan(dp=8, zero=stage), allocator=False)
        .memory.peak_requested_bytes
        for stage in range(4)
    ]  # fmt: skip
    assert peaks == sorted(peaks, reverse=True)


@pytest.mark.parametrize("layout", [{"gpus": 1}, {"gpus": 1, "dp": 1}, {"dp": 1}])
def test_one_gpu_is_the_estimate_without_a_layout(layout: dict[str, int]) -> None:
    for setup in (SETUP, replace(SETUP, grad_accum_steps=3, recompute="sac", precision="bf16")):
        alone = plan_of(LLAMA, setup)
        one = _plan(LLAMA, setup, **layout)
        assert step_memory(one) == step_memory(alone)
        ours, theirs = training_program(one, ()), training_program(alone, ())
        assert (ours.events, ours.sizes) == (theirs.events, theirs.sizes)


def test_one_gpus_result_is_that_without_a_layout() -> None:
    alone = estimate("gpt2", gpu="h100-80gb")
    one = estimate("gpt2", gpu="h100-80gb", parallel=ParallelPlan(gpus=1))
    assert (one.memory, one.verdict, one.notes) == (alone.memory, alone.verdict, alone.notes)
    assert one.assumptions == alone.assumptions


def test_more_ranks_never_take_more() -> None:
    peaks = [
        step_memory(_plan(DEEP, SETUP, dp=dp, fsdp=True)).peak_bytes for dp in (2, 4, 8, 16, 64)
    ]
    assert peaks == sorted(peaks, reverse=True)


def test_a_number_of_ranks_lies_between_freeing_and_keeping() -> None:
    """reshard_after_forward as a number: what is kept from forward to backward grows with 1 / it."""
    plans = [_plan(DEEP, SETUP, dp=8, fsdp=True, reshard=one) for one in (True, 4, 2, False)]
    kept = [step_memory(plan).phases["loss"] for plan in plans]
    assert kept == sorted(kept) and len(set(kept)) == 4
    same = (step_memory(_plan(DEEP, SETUP, dp=8, fsdp=True, reshard=n)) for n in (8, 1))
    assert [one.phases for one in same] == [step_memory(plans[i]).phases for i in (0, 3)]


def test_stage_2_is_fsdp_that_keeps_what_it_gathered() -> None:
    two = step_memory(_plan(DEEP, SETUP, dp=8, zero=2))
    kept = step_memory(_plan(DEEP, SETUP, dp=8, fsdp=True, reshard=False))
    assert (two.phases, two.breakdown) == (kept.phases, kept.breakdown)


def test_buckets_close_where_their_limit_is_reached() -> None:
    small, half = FIRST_BUCKET_BYTES // 4, BUCKET_BYTES // 2
    assert bucket_bytes([]) == []
    assert bucket_bytes([small] * 4) == [4 * small]
    assert bucket_bytes([small] * 5) == [4 * small, small]
    assert bucket_bytes([small, half, half, small, half, 1]) == [
        small + half, 2 * half + small, 1,
    ]  # fmt: skip
    assert sum(bucket_bytes(list(range(1, 9000, 7)))) == sum(range(1, 9000, 7))


REFUSED = [
    (
        {"dp": 8, "shard": 2},
        "shard: got 2 without fsdp; rule: of sharded parameters; valid: --fsdp",
    ),
    (
        {"dp": 8, "fsdp": True, "shard": 3},
        "shard: got 3; rule: divides the 8 ranks of dp x cp; valid: 1, 2, 4, 8",
    ),
    ({"dp": 8, "reshard": False}, "reshard: got False with no fsdp; rule: of sharded parameters"),
    ({"dp": 8, "zero": 1, "reshard": 2}, "reshard: got 2 with zero 1; rule: of sharded parameters"),
    (
        {"dp": 8, "fsdp": True, "reshard": 3},
        "reshard: got 3; rule: divides the 8 ranks that share parameters; valid: 1, 2, 4, 8",
    ),
    ({"dp": 8, "fsdp": True, "zero": 2}, "zero: got 2 with fsdp; rule: fsdp is stage 3; valid: 3"),
    ({"gpus": 6, "dp": 4}, "dp: got 4; rule: tp x pp x cp x dp = 6 GPUs; valid: 6"),
]


@pytest.mark.parametrize(("layout", "line"), REFUSED, ids=[line[:24] for _, line in REFUSED])
def test_what_cannot_be_is_refused_with_what_can(layout: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as error:
        _plan(LLAMA, SETUP, **layout)
    assert str(error.value).startswith(line) and "\n" not in str(error.value)


@pytest.mark.parametrize("optimizer", ["muon", "adafactor"])
def test_whole_matrices_are_not_stepped_in_parts(optimizer: str) -> None:
    with pytest.raises(ConfigError, match=f"got {optimizer} with fsdp; .*valid: adamw"):
        _plan(LLAMA, replace(SETUP, optimizer=optimizer), dp=2, fsdp=True)
    _plan(LLAMA, replace(SETUP, optimizer=optimizer), dp=2)
