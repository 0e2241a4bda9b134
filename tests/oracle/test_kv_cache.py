"""Bytes of the cache of keys and values, read off the ledger, against transformers' cache objects."""

from __future__ import annotations

from typing import Any

import pytest

from memcalc.engine.families import traits_for
from memcalc.engine.kernels import Kernels
from memcalc.engine.serving.cache_size import cache_bytes
from memcalc.engine.serving.forward import Positions, forward_of
from memcalc.inputs.hf import model_from_config
from memcalc.inputs.models import load_model
from tests.oracle.support.hf_serving import serve_hf
from tests.oracle.support.tiny import TINY

_LLAMA = {
    "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
}  # fmt: skip
_QWEN2 = {
    "model_type": "qwen2", "vocab_size": 32000, "hidden_size": 3584, "intermediate_size": 18944,
    "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
}  # fmt: skip
_GEMMA2 = {
    "model_type": "gemma2", "vocab_size": 32000, "hidden_size": 3584, "intermediate_size": 14336,
    "num_hidden_layers": 42, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256,
    "sliding_window": 4096, "max_position_embeddings": 8192,
}  # fmt: skip
_V2 = {
    **TINY["deepseek_v2"], "hidden_size": 5120, "num_hidden_layers": 6, "num_attention_heads": 128,
    "num_key_value_heads": 128, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128,
    "v_head_dim": 128, "max_position_embeddings": 8192,
}  # fmt: skip
_V3 = {**_V2, "model_type": "deepseek_v3", "hidden_size": 7168, "topk_method": "noaux_tc"}
MODELS: dict[str, dict[str, Any]] = {
    "llama-3-8b": _LLAMA, "qwen2-7b": _QWEN2, "gemma-2-9b": _GEMMA2, "deepseek-v2": _V2,
    "deepseek-v3": _V3,
}  # fmt: skip
#: Batch, prompt: below and beyond Gemma's window of 4096.
SIZES = ((1, 127), (3, 4095), (2, 4500))


def mine(config: dict[str, Any], at: Positions, code: str) -> int:
    model = model_from_config(config, config["model_type"])
    kernels = Kernels(hf=True, attention="flash", traits=traits_for(model.model_type))
    return cache_bytes(forward_of(model, kernels, at, code))


@pytest.mark.parametrize(("batch", "prompt"), SIZES)
@pytest.mark.parametrize("model", MODELS)
def test_dynamic_cache(model: str, batch: int, prompt: int) -> None:
    """After the prompt, and after each of two more tokens."""
    passes = serve_hf(MODELS[model], batch, (prompt, 1, 1))
    past, held = 0, None
    for new, one in zip((prompt, 1, 1), passes, strict=True):
        at = Positions(batch, new, past, window_held=held)
        assert mine(MODELS[model], at, "grow") == one.cache_bytes
        past += new
        held = None if past > prompt else past


@pytest.mark.parametrize("capacity", [256, 4096, 8192])
@pytest.mark.parametrize("model", MODELS)
def test_static_cache(model: str, capacity: int) -> None:
    theirs = serve_hf(MODELS[model], 2, (128, 1), static=capacity)
    for past, new, one in ((0, 128, theirs[0]), (128, 1, theirs[1])):
        at = Positions(2, new, past, capacity)
        assert mine(MODELS[model], at, "static") == one.cache_bytes


@pytest.mark.parametrize(
    ("model", "bytes_a_token"),
    [
        ("llama-3-8b", 131072), ("llama-2-7b", 524288), ("qwen2.5-7b", 57344),
        ("llama-3.1-405b", 516096), ("deepseek-v3", 70272), ("deepseek-v2", 69120),
    ],
)  # fmt: skip
def test_bytes_a_token_of_profiles(model: str, bytes_a_token: int) -> None:
    """2 x layers x heads x width x 2 bytes, written out; latent: layers x (512 + 64) x 2 bytes."""
    config = load_model(model)
    kernels = Kernels(hf=True, traits=traits_for(config.model_type))
    forward = forward_of(config, kernels, Positions(1, 1, 9))
    assert cache_bytes(forward) == 10 * bytes_a_token
