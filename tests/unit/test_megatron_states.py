"""Bytes of parameters, gradients and optimizer states on a Megatron rank."""

from __future__ import annotations

import pytest

from memcalc.inputs.models import load_model
from memcalc.inputs.parallel import ParallelPlan
from tests.unit.megatron_support import deepseek, gpt, llama, megatron

#: Bytes a parameter at the optimizer's step: the table of Megatron-LM's documentation of the
#: distributed optimizer, (whole, what is not sharded, what is).
DOCUMENTED = {
    "fp16-mixed": (20, 4, 16),
    "bf16-mixed": (18, 6, 12),
    "fp32": (16, 8, 8),
}


def at_step(precision: str, parallel: ParallelPlan) -> tuple[int, int]:
    """Parameters of a rank, and bytes at the optimizer's step without buffers and token ids."""
    kernel = "eager" if precision == "fp32" else "flash"
    plan, memory = megatron(gpt(), parallel, precision=precision, attention=kernel)
    fixed = sum(plan.strategy.fixed_bytes(plan).values()) + memory.input_bytes
    return memory.states.parameters, memory.phases["optimizer"] - fixed


@pytest.mark.parametrize("precision", DOCUMENTED)
def test_bytes_a_parameter_as_documented(precision):
    parameters, found = at_step(precision, ParallelPlan(dp=8))
    assert found == DOCUMENTED[precision][0] * parameters


@pytest.mark.parametrize("precision", DOCUMENTED)
def test_the_distributed_optimizer_shards_what_is_documented(precision):
    parameters, found = at_step(precision, ParallelPlan(dp=8, zero=1))
    _, kept, sharded = DOCUMENTED[precision]
    assert found == kept * parameters + sharded * parameters // 8


def test_context_parallel_ranks_share_the_states():
    found = at_step("bf16-mixed", ParallelPlan(dp=2, cp=4, zero=1))
    assert found[1] == 6 * found[0] + 12 * found[0] // 8


def test_gradients_exist_from_the_start():
    """One micro-batch or many: the gradient buffer is there, nothing is accumulated beside it."""
    once, often = (megatron(llama(), grad_accum_steps=n)[1] for n in (1, 8))
    assert once.peak_bytes == often.peak_bytes
    assert once.breakdown["gradients"] == 4 * once.states.parameters


def test_mixtral_on_8_ranks_of_one_expert_does_not_fit_80_gb():
    """Attention, embedding and head 6 + 12/8 bytes, one expert of each layer 18: 113.5 GB."""
    dense = 32 * (4096 * (4096 + 2 * 1024) + 4096 * 4096 + 8 * 4096 + 2 * 4096)
    dense += 2 * 32000 * 4096 + 4096
    experts = 32 * 3 * 4096 * 14336
    _, memory = megatron(load_model("mixtral-8x7b"), ParallelPlan(dp=8, ep=8, zero=1))
    held = memory.states
    total = sum(
        (held.parameter_bytes, held.gradient_bytes, held.optimizer_bytes, held.master_bytes)
    )
    assert held.parameters == dense + experts
    assert total == dense * 15 // 2 + experts * 18
    assert 113.5e9 < total < 113.6e9


def test_deepseek_experts_are_sharded_over_what_is_left_of_the_ranks():
    """ep 4 of 8 data-parallel ranks: 64 experts a rank, their optimizer over 2 ranks."""
    plan, memory = megatron(deepseek(), ParallelPlan(dp=8, ep=4, zero=1))
    experts = 3 * 64 * 3 * 7168 * 2048
    dense = memory.states.parameters - experts
    held = memory.states
    assert (plan.strategy.ranks, plan.strategy.expert_ranks) == (8, 2)
    assert held.optimizer_bytes == dense * 8 // 8 + experts * 8 // 2
    assert held.master_bytes == dense * 4 // 8 + experts * 4 // 2


def test_an_expert_divided_over_its_own_ranks():
    """etp 1 with tp 2: each tensor-parallel rank holds whole experts, half as many copies of each."""
    layout = {"dp": 4, "tp": 2, "ep": 4, "zero": 1}
    whole, _ = megatron(deepseek(), ParallelPlan(**layout, etp=1))
    split, _ = megatron(deepseek(), ParallelPlan(**layout))
    assert (whole.strategy.expert_ranks, split.strategy.expert_ranks) == (2, 1)
    assert whole.values["m"] == 2 * split.values["m"] == 2048


def test_several_distributed_optimizers_share_less():
    """16 ranks as two optimizers of 8: each shards over 8, experts (ep 4) over 4 / 2."""
    plan, memory = megatron(deepseek(), ParallelPlan(dp=16, ep=4, zero=1, shard=8))
    assert (plan.strategy.ranks, plan.strategy.expert_ranks) == (8, 2)
    alone, same = megatron(deepseek(), ParallelPlan(dp=8, ep=4, zero=1))
    assert memory.states == same.states


def test_qwen3_235b_at_its_published_layout():
    """tp 4, pp 8 of 94 layers as 12 each, ep 8, dp 2 x 4: one stage's 12 layers by hand."""
    config = load_model("qwen3-235b-a22b")
    h, d, tp = 4096, 128, 4
    layer = (64 + 2 * 4) * d * h // tp + 64 * d * h // tp + 2 * h + 2 * d + 128 * h
    experts = 128 // 8 * 3 * h * 1536 // 1
    _, memory = megatron(config, ParallelPlan(tp=4, dp=8, ep=8, etp=1, zero=1))
    ends = 2 * (151936 + 128) // tp * h + h
    assert memory.states.parameters == config.num_hidden_layers * (layer + experts) + ends
