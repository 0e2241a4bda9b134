"""What is named as making a setup fit does make it fit, and the order is that of cost."""

from __future__ import annotations

from memcalc import TrainingSetup, estimate, load_model
from memcalc.engine.device_side import device_of
from memcalc.engine.remedy import remedies


def test_the_first_remedy_makes_the_setup_fit() -> None:
    setup = TrainingSetup(micro_batch_size=4, seq_len=2048)
    device = device_of("rtx-4090")
    assert estimate("llama-3.2-1b", setup, gpu=device).fits is False
    lines = remedies(load_model("llama-3.2-1b"), setup, device)
    assert lines and "fits with" in lines[0]


def test_a_named_option_fits_when_it_is_used() -> None:
    setup = TrainingSetup(micro_batch_size=1, seq_len=2048)
    device = device_of("h100-80gb")
    lines = remedies(load_model("llama-3.1-8b"), setup, device)
    assert lines[0].startswith("--precision bf16")
    changed = TrainingSetup(micro_batch_size=1, seq_len=2048, precision="bf16")
    assert estimate("llama-3.1-8b", changed, gpu=device).fits


def test_a_model_that_is_too_large_for_any_change_says_so() -> None:
    lines = remedies(load_model("llama-3.1-405b"), TrainingSetup(), device_of("rtx-3090"))
    assert len(lines) == 1 and "shard the model over several GPUs" in lines[0]


def test_changes_that_are_already_made_are_not_proposed() -> None:
    setup = TrainingSetup(recompute="full", optimizer_impl="fused", loss="chunked")
    lines = remedies(load_model("llama-3.1-8b"), setup, device_of("rtx-4090"))
    assert not any("recompute" in line or "fused" in line for line in lines)
