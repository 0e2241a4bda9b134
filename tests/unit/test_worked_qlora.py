"""Worked case W12: LLaMA-65B with a 4-bit base and LoRA on one GPU, called "about 50 GB or more".

NF4 with double quantisation for the blocks' linears, embedding and head in 16 bits, LoRA of rank 64 on
every linear in fp32 with fp32 gradients and moments (16 bytes a parameter), micro-batch 1 with gradient
checkpointing, 512 to 2048 tokens. Figures in GB of 10^9 bytes, allocated.
"""

from __future__ import annotations

from functools import cache

import pytest

from memcalc.engine.estimate import Estimate, estimate
from memcalc.inputs.peft import PeftSetup
from memcalc.inputs.training import TrainingSetup


@cache
def tuned(tokens: int, rank: int = 64) -> Estimate:
    setup = TrainingSetup(
        seq_len=tokens,
        micro_batch_size=1,
        precision="bf16",
        recompute="full",
        stack="hf",
        peft=PeftSetup(method="qlora", rank=rank, targets=("all-linear",)),
    )
    return estimate("llama-65b", setup, gpu="a100-80gb")


@pytest.mark.parametrize(("tokens", "by_hand"), [(512, 49.8e9), (2048, 53.2e9)])
def test_w12_about_50_gb(tokens: int, by_hand: float) -> None:
    found = tuned(tokens)
    peak = found.memory.peak_allocated_bytes
    assert peak == pytest.approx(50e9, rel=0.15)
    assert peak == pytest.approx(by_hand, rel=0.05)
    assert found.verdict == "fits"


def test_w12_is_base_and_adapters_for_the_most_part() -> None:
    """34.5 GB of base and 12.8 GB of adapters: 799,539,200 parameters of 16 bytes."""
    found = tuned(512)
    states = found.memory.states
    trained = found.model.trainable_parameters
    assert trained == 64 * 80 * (4 * (8192 + 8192) + 3 * (8192 + 22016))
    adapters = 4 * trained + states["gradients"] + states["optimizer"]
    assert adapters == 16 * trained == pytest.approx(12.8e9, rel=0.01)
    assert states["parameters"] - 4 * trained == pytest.approx(34.5e9, rel=0.01)


@pytest.mark.parametrize(("tokens", "by_hand"), [(512, 38.6e9), (2048, 42.0e9)])
def test_w12_of_rank_8_is_outside_and_right(tokens: int, by_hand: float) -> None:
    """An eighth of the adapters: 11 GB less."""
    assert tuned(tokens, 8).memory.peak_allocated_bytes == pytest.approx(by_hand, rel=0.05)
