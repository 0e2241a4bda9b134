"""Worked cases of encoder-decoders: fine-tuning T0_3B and mt0-xxl on one A100 of 80 GB.

Published by PEFT's README (huggingface/peft, "Memory savings"): AdamW without foreach, fp32, batch 8,
short tweets of about 64 tokens with a label of up to three, bigscience/T0_3B full 47.14 GB, LoRA 14.4 GB;
bigscience/mt0-xxl full does not fit, LoRA 56 GB (r 8, dropout 0.1 on q and v).
"""

from __future__ import annotations

import pytest

from memcalc.engine.estimate import Estimate, estimate
from memcalc.inputs.peft import PeftSetup
from memcalc.inputs.training import TrainingSetup

LORA = PeftSetup(method="lora", rank=8, dropout=0.1)


def _tuned(name: str, peft: PeftSetup | None = None) -> Estimate:
    setup = TrainingSetup(
        seq_len=64,
        target_seq_len=3,
        micro_batch_size=8,
        precision="fp32",
        optimizer_impl="loop",
        stack="hf",
        peft=peft,
    )
    return estimate(name, setup, gpu="a100-80gb")


@pytest.mark.parametrize(
    ("name", "peft", "published", "band"),
    [
        ("t0-3b", None, 47.14e9, 0.15),
        ("t0-3b", LORA, 14.4e9, 0.15),
        ("mt0-xxl", LORA, 56e9, 0.15),
    ],
)
def test_peak_allocated(name: str, peft: PeftSetup | None, published: float, band: float) -> None:
    found = _tuned(name, peft).memory.peak_allocated_bytes
    assert abs(found / published - 1) <= band


def test_full_fine_tuning_of_t0_3b() -> None:
    found = _tuned("t0-3b")
    assert found.model.parameters == 2_849_757_184
    assert found.verdict == "fits"
    assert sum(found.memory.states.values()) == 16 * 2_849_757_184


def test_full_fine_tuning_of_mt0_xxl_does_not_fit() -> None:
    found = _tuned("mt0-xxl")
    assert found.verdict == "does-not-fit"
    assert found.model.parameters == 12_921_057_280
    assert sum(found.memory.states.values()) == pytest.approx(206.7e9, rel=1e-3)


def test_foreach_takes_a_copy_of_the_gradients_more() -> None:
    """The same in the default foreach AdamW: another case, 59 GB by hand."""
    setup = TrainingSetup(
        seq_len=64, target_seq_len=3, micro_batch_size=8, precision="fp32", stack="hf"
    )
    found = estimate("t0-3b", setup, gpu="a100-80gb").memory.peak_allocated_bytes
    assert found == pytest.approx(59e9, rel=0.05)
