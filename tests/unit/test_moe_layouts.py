"""Mixtures of experts at the layouts their publishers ran them at: what ran on 80 GB has to fit 80 GB.

All are stack megatron in bf16 with fp32 gradients and states. Recipes that keep gradients or moments in
bf16, or activations in fp8, need less; DeepEP's buffers and multi-token prediction are left out. GB is
10^9 bytes, GiB 2^30.
"""

from __future__ import annotations

from functools import cache

import pytest

from memcalc import ParallelPlan, TrainingSetup, estimate, explain
from memcalc.engine.results import Estimate
from memcalc.units import GIB

GB = 10**9


def selective(*modules: str) -> dict[str, object]:
    return {"recompute": "selective", "recompute_modules": modules}


FULL: dict[str, object] = {"recompute": "full"}
#: name: (model, degrees, layers of each chunk, sequences a step, recomputation)
RUNS: dict[str, tuple[str, dict[str, int], tuple[int, ...] | None, int, dict[str, object]]] = {
    # Megatron-LM megatron/core/transformer/moe/README.md, "Reference Best Parallel Mapping" (H100 80GB)
    "mixtral-8x7b, 64": (
        "mixtral-8x7b", {"gpus": 64, "pp": 4, "vpp": 8, "ep": 8}, None, 256, {},
    ),
    "mixtral-8x22b, 128": (
        "mixtral-8x22b", {"gpus": 128, "tp": 4, "pp": 8, "vpp": 7, "ep": 2}, None, 256, {},
    ),
    # yanring/Megatron-MoE-ModelZoo best_practice/Qwen3/readme.md (256 H100, "norm, act" or nothing);
    # the same layout: NVIDIA-NeMo/Megatron-Bridge docs/performance-summary.md, DGX-H100
    "qwen3-235b, ep 32": (
        "qwen3-235b-a22b", {"gpus": 256, "tp": 2, "pp": 8, "vpp": 4, "ep": 32, "etp": 1},
        (2, *[3] * 30, 2), 2048, selective("moe_act", "layernorm"),
    ),
    "qwen3-235b, ep 8": (
        "qwen3-235b-a22b", {"gpus": 256, "tp": 4, "pp": 8, "vpp": 4, "ep": 8, "etp": 1},
        (2, *[3] * 30, 2), 2048, {},
    ),
    # NVIDIA-NeMo/Megatron-Bridge scripts/performance/configs/deepseek (DEEPSEEK_V3_PRETRAIN_CONFIG_H100_
    # BF16_V1: pp_layout "Et|(tt|)*30mL", recompute_modules) and recipes/deepseek/deepseek_v3.py (32 nodes)
    "deepseek-v3, 1024": (
        "deepseek-v3", {"gpus": 1024, "tp": 2, "pp": 8, "vpp": 4, "ep": 64, "etp": 1},
        (1, *[2] * 30, 0), 8192, selective("mla_up_proj", "mlp"),
    ),
    "deepseek-v3, 256": (
        "deepseek-v3", {"gpus": 256, "tp": 2, "pp": 8, "ep": 32, "etp": 1},
        (*[8] * 7, 5), 4096, FULL,
    ),
    # DeepSeek-AI 2024 (arXiv:2412.19437), sections 3.2 and 4.2: 2048 H800 of 80 GB, pp 16, ep 64, zero 1,
    # no tp; RMSNorm, MLA's up-projections and SwiGLU computed again. Theirs ran DualPipe and fp8.
    "deepseek-v3, 2048": (
        "deepseek-v3", {"gpus": 2048, "pp": 16, "ep": 64},
        (*[4] * 15, 1), 15360, selective("mla_up_proj", "layernorm", "moe_act"),
    ),
}  # fmt: skip


@cache
def ran(name: str, recomputes: bool = True) -> Estimate:
    """The estimate of a published run; recomputes: as published, else without."""
    model, degrees, layers, batch, recompute = RUNS[name]
    setup = TrainingSetup(
        stack="megatron", seq_len=4096, micro_batch_size=1, global_batch=batch, loss="fused",
        **recompute if recomputes else {},
    )  # fmt: skip
    schedule = "interleaved" if "vpp" in degrees else "1f1b"
    layout = ParallelPlan(**degrees, zero=1, schedule=schedule, stage_layers=layers)
    return estimate(model, setup, parallel=layout, gpu="h100-80gb", allocator=False)


@pytest.mark.parametrize("name", RUNS)
def test_what_ran_on_h100_of_80_gb_fits_them(name):
    assert ran(name).fits


@pytest.mark.parametrize("name", RUNS)
def test_published_layouts_fill_more_than_half_of_their_cards(name):
    """A layout is chosen because less would not do: published ones fill their GPUs."""
    memory = ran(name).memory
    assert memory.peak_allocated_bytes > 40 * GIB


@pytest.mark.parametrize("name", ["deepseek-v3, 1024", "deepseek-v3, 256", "deepseek-v3, 2048"])
def test_without_their_recomputation_they_do_not_fit(name):
    assert ran(name, recomputes=False).fits is False


def mixtral(**layout: int) -> Estimate:
    """Mixtral on one node of 8 GPUs, an expert of each layer a rank."""
    setup = TrainingSetup(stack="megatron", seq_len=4096, recompute="full")
    plan = ParallelPlan(gpus=8, ep=8, **layout)
    return estimate("mixtral-8x7b", setup, parallel=plan, gpu="h100-80gb", allocator=False)


@pytest.mark.parametrize("zero", [0, 1])
def test_mixtral_does_not_train_on_one_node_with_whole_optimizer_states(zero):
    """An expert has one copy on 8 GPUs, so sharding over copies leaves its 12 bytes whole.

    One expert of 32 layers: 32 x 3 x 4096 x 14336 = 5.64e9 parameters, 18 bytes each: 101.5 GB. The
    rest, 1.61e9: 18 bytes, or 6 + 12/8 sharded: 28.9 or 12.0 GB. Recomputing everything does not help.
    """
    result = mixtral(zero=zero)
    expert, rest = 32 * 3 * 4096 * 14336, 1_605_636_096
    states = sum(result.memory.states.values())
    assert states == expert * 18 + rest * (18 if zero == 0 else 7.5)
    assert result.fits is False
    assert states > 80 * GIB > 69 * GB
    assert 105 * GIB < result.memory.peak_allocated_bytes < 150 * GIB


def test_the_derivation_of_mixtral_is_printed():
    """explain: what one rank holds of each part, with its bytes, and the formula of its parameters."""
    setup = TrainingSetup(stack="megatron", seq_len=4096)
    found = explain("mixtral-8x7b", setup, parallel=ParallelPlan(gpus=8, ep=8, zero=1))
    held = {one.part: one for one in found.holdings}
    assert held["experts"].parameter_bytes == 2 * 32 * 3 * 4096 * 14336
    assert held["experts"].gradient_bytes == 4 * 32 * 3 * 4096 * 14336
    assert found.states["master copies"] == 32 * 3 * 4096 * 14336 * 4 + 1_605_636_096 * 4 // 8


def test_a_fuller_rank_needs_more():
    """DeepSeek-V3 on 256 GPUs: twice the rows take at least their inputs, products and activations."""
    setup = TrainingSetup(
        stack="megatron", seq_len=4096, global_batch=4096, micro_batch_size=1, recompute="full",
        loss="fused", imbalance=2.0,
    )  # fmt: skip
    layout = ParallelPlan(
        gpus=256, tp=2, pp=8, ep=32, etp=1, zero=1, stage_layers=(*[8] * 7, 5)
    )  # fmt: skip
    result = estimate("deepseek-v3", setup, parallel=layout, gpu="h100-80gb", allocator=False)
    rows = 2048 * 8
    balanced = ran("deepseek-v3, 256").memory.stages
    for stage, (one, other) in enumerate(zip(result.memory.stages, balanced, strict=True)):
        more = one.peak_allocated_bytes - other.peak_allocated_bytes
        assert more >= rows * (2 * 7168 + 6 * 2048), stage
