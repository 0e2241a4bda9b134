"""Worked cases of fine-tuning: ChatGLM-6B on a V100 of 32 GB, bloomz-7b1 on an A100 of 80 GB.

Published: memory that nvidia-smi showed of LoRA, P-tuning v2 and freezing on ChatGLM-6B
(https://github.com/hiyouga/ChatGLM-Efficient-Tuning, hardware requirements), rounded to whole GB, padded
lengths unnamed: sequences of 384 or 512 tokens are taken; PEFT's README ("Memory savings") for bloomz-7b1 in
fp32, batch 8, tweets of about 64 tokens, peak allocated. Gradient checkpointing throughout for ChatGLM, in
its reentrant form beside LLM.int8, whose other form keeps the inputs of every product. V100 rows
with int8 are estimated on an A100: bitsandbytes runs int8 from Turing on.
"""

from __future__ import annotations

from typing import Any

import pytest

from memcalc.engine.estimate import Estimate, estimate
from memcalc.inputs.peft import PeftSetup
from memcalc.inputs.training import TrainingSetup

QKV = ("query_key_value",)
MLP = ("dense_h_to_4h", "dense_4h_to_h")


def tuned(peft: PeftSetup, seq: int, batch: int = 4, **changes: Any) -> Estimate:
    """ChatGLM-6B: eager attention, fp32 logits and norms, everything recomputed."""
    fields = {"precision": "fp16-mixed", **changes}
    setup = TrainingSetup(
        stack="hf", attention="eager", recompute="full", seq_len=seq, micro_batch_size=batch,
        peft=peft, **fields,
    )  # fmt: skip
    device = "a100-40gb" if peft.packed == "int8" else "v100-32gb"
    return estimate("chatglm-6b", setup, gpu=device, allocator=True)


def shown(found: Estimate) -> float:
    """What nvidia-smi shows, in GB."""
    used = found.memory.device_used_bytes
    assert used is not None
    return used / 1e9


def near(found: Estimate, published: float, band: float) -> bool:
    return abs(shown(found) / published - 1) <= band


@pytest.mark.parametrize(("batch", "published"), [(16, 28), (8, 24), (4, 20)])
def test_p2_lora_in_fp16(batch: int, published: float) -> None:
    setup = PeftSetup(targets=QKV, weights="fp16")
    assert near(tuned(setup, 384, batch), published, 0.2)
    assert near(tuned(setup, 512, batch), published, 0.3)


@pytest.mark.parametrize(("weights", "published"), [("int8", 10), ("nf4", 8)])
def test_p3_lora_beside_packed_weights(weights: str, published: float) -> None:
    """Embedding, head and norms in 16 bits, so no autocast, which would have them in 32."""
    setup = PeftSetup(targets=QKV, weights=weights)
    own = {"precision": "bf16", "reentrant": weights == "int8"}
    assert near(tuned(setup, 384, **own), published, 0.25)
    assert near(tuned(setup, 512, **own), published, 0.35)


@pytest.mark.parametrize(("weights", "published"), [("fp16", 20), ("int8", 16), ("nf4", 12)])
def test_p4_p_tuning_v2(weights: str, published: float) -> None:
    setup = PeftSetup(method="prefix", virtual_tokens=16, weights=weights)
    precision = "fp16-mixed" if weights == "fp16" else "bf16"
    for seq in (512, 768):
        found = tuned(setup, seq, precision=precision)
        assert near(found, published, 0.3)
        assert found.model.trainable_parameters == 16 * 28 * 2 * 4096


def test_p5_freezing_all_but_three_mlps() -> None:
    setup = PeftSetup(method="freeze", layers=3, targets=MLP, weights="fp16")
    found = tuned(setup, 512)
    assert near(found, 24, 0.3)
    assert found.model.trainable_parameters == 402_714_624
    states = found.memory.states
    assert states["gradients"] + states["optimizer"] == 12 * 402_714_624


def test_p5_int8_leaves_no_room_for_what_trains() -> None:
    """The published 12 GB hold an int8 base alone: int8 matrices take no gradient."""
    both = [
        tuned(PeftSetup(method=method, weights="int8", **more), 512, precision=precision)
        for method, more, precision in (
            ("freeze", {"layers": 3, "targets": MLP}, "fp16-mixed"),
            ("lora", {"targets": QKV, "rank": 1}, "bf16"),
        )
    ]
    with_states, without = map(shown, both)
    assert any("packed matrices take no gradient" in note for note in both[0].notes)
    assert with_states - 16 * 0.402714624 > 12 and with_states - without > 6
    assert without < 16


def test_p9_lora_of_bloomz_in_fp32() -> None:
    found = fp32_of_bloom(PeftSetup(dropout=0.1))
    assert abs(found.memory.peak_allocated_bytes / 32e9 - 1) <= 0.2
    assert found.verdict == "fits"


def test_p9_all_of_bloomz_does_not_fit() -> None:
    found = fp32_of_bloom(None)
    assert found.verdict == "does-not-fit"
    assert found.model.parameters == 7_069_016_064
    assert sum(found.memory.states.values()) == 16 * 7_069_016_064  # 113 GB


def fp32_of_bloom(peft: PeftSetup | None) -> Estimate:
    setup = TrainingSetup(
        stack="hf",
        precision="fp32",
        optimizer_impl="loop",
        seq_len=64,
        micro_batch_size=8,
        peft=peft,
    )
    return estimate("bloom-7b1", setup, gpu="a100-80gb")
