"""Loading by transformers itself, on a CPU: what is alive at the most and at the end."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import transformers
from torch import nn

from memcalc.engine.make_plan import plan_of
from memcalc.engine.phases.loading import loading
from memcalc.engine.quantised import Weights, weights_of_plan
from memcalc.errors import ConfigError
from memcalc.harness.watch.tracker import StorageTracker
from memcalc.inputs.hf import model_from_config
from memcalc.inputs.training import TrainingSetup
from memcalc.inputs.weights import load_weights

SIZES = {
    "vocab_size": 1000, "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 128,
}  # fmt: skip
#: Rotary frequencies, two tables; and the table of 8-bit codes that bitsandbytes keeps for all matrices.
ROTARY, CODES = 2 * 32 * 4, 1024


def weights(fmt: str) -> Weights:
    config = model_from_config({"model_type": "llama", **SIZES}, "m")
    setup = TrainingSetup(seq_len=16, stack="hf", precision="bf16")
    return weights_of_plan(plan_of(config, setup), load_weights(fmt))


def asked(fmt: str) -> Any:
    if fmt == "nf4":
        return transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
        )
    return transformers.BitsAndBytesConfig(load_in_8bit=True) if fmt == "int8" else None


def read_by_transformers(fmt: str, folder: Path) -> tuple[int, int]:
    """What from_pretrained holds at the most and at the end; the model is written to the folder first."""
    if fmt != "bf16":
        pytest.importorskip(
            "bitsandbytes", reason="bitsandbytes is not installed; pip install memcalc[test]"
        )
        pytest.importorskip("accelerate", reason="transformers loads quantised models with it")
    config = transformers.LlamaConfig(**SIZES)
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(
        folder
    )
    tracker = StorageTracker("cpu")
    # Threads of its own the tracker cannot follow.
    in_turn = mock.patch.dict(os.environ, {"HF_DEACTIVATE_ASYNC_LOAD": "1"})
    with in_turn, tracker, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=asked(fmt), dtype=torch.bfloat16, device_map="cpu"
        )
    assert isinstance(model, nn.Module)
    return tracker.peak, tracker.live


@pytest.mark.parametrize("fmt", ["bf16", "nf4", "int8"])
def test_what_from_pretrained_holds(fmt, tmp_path):
    """The peak lies below the bound by less than a layer: its attention comes after its largest matrix."""
    peak, live = read_by_transformers(fmt, tmp_path)
    ours = loading(weights(fmt))
    extra = live - ours.weights_bytes
    assert ROTARY <= extra <= ROTARY + CODES + 256
    layer = sum(h.resident_bytes for h in weights(fmt).leaves if h.name.startswith("layers.2."))
    below = ours.peak_bytes + extra - peak
    assert -1024 <= below < layer
    assert ours.exact == (fmt == "bf16")


def test_a_state_dict_read_onto_the_device_doubles_the_weights():
    tracker = StorageTracker("meta")
    with tracker:
        model = nn.Linear(64, 48, device="meta")
        state = {name: torch.empty_like(p) for name, p in model.named_parameters()}
        model.load_state_dict(state)
    found = loading(weights("bf16"), "copy")
    assert tracker.peak == 2 * sum(p.nbytes for p in model.parameters())
    assert found.peak_bytes == 2 * weights("bf16").resident_bytes


def test_packed_checkpoints_pass_nothing_through_sixteen_bits():
    found = weights("nf4")
    assert loading(found, prequantised=True).peak_bytes == found.resident_bytes
    assert loading(found).passing.startswith("layers.") and loading(found).passing_bytes == (
        704 * 256 * 2
    )
    assert loading(weights("int8")).passing_bytes == 2 * 704 * 256 * 2


def test_an_unknown_way_is_refused():
    with pytest.raises(ConfigError, match="direct"):
        loading(weights("bf16"), "directly")
