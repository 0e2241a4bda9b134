"""config.json -> ModelConfig for llama-shaped and sparse families, on the files as published."""

from __future__ import annotations

from typing import Any

import pytest

from memcalc.errors import ConfigError, NotInThisVersionError
from memcalc.inputs.hf import FAMILIES, model_from_config
from memcalc.inputs.model import ModelConfig


def read(**config: Any) -> ModelConfig:
    return model_from_config(config, "m")


DIMS = {
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}


def test_llama_as_published() -> None:
    model = read(
        architectures=["LlamaForCausalLM"], attention_bias=False, attention_dropout=0.0,
        bos_token_id=128000, eos_token_id=128001, head_dim=64, hidden_act="silu",
        hidden_size=2048, initializer_range=0.02, intermediate_size=8192,
        max_position_embeddings=131072, mlp_bias=False, model_type="llama",
        num_attention_heads=32, num_hidden_layers=16, num_key_value_heads=8, pretraining_tp=1,
        rms_norm_eps=1e-05, rope_scaling={"factor": 32.0, "rope_type": "llama3"},
        rope_theta=500000.0, tie_word_embeddings=True, torch_dtype="bfloat16",
        transformers_version="4.45.0.dev0", use_cache=True, vocab_size=128256,
    )  # fmt: skip
    assert (model.head_dim, model.num_key_value_heads, model.num_hidden_layers) == (64, 8, 16)
    assert model.tie_word_embeddings and model.gated_mlp and not model.attention_bias
    assert model.dtype == "bfloat16" and model.model_type == "llama"
    assert model.notes == ("rope scaling ('llama3'): changes no tensor size",)


def test_llama_one_bias_key_means_all_four_projections() -> None:
    model = read(model_type="llama", **DIMS, attention_bias=True, mlp_bias=True)
    assert model.attention_bias and model.attention_output_bias and model.mlp_bias
    assert model.num_key_value_heads == 4 and model.head_dim == 16
    assert model.max_position_embeddings == 2048 and model.dtype == "float32"


def test_mistral_window_is_4096_when_absent_and_off_when_null() -> None:
    dims = {**DIMS, "num_attention_heads": 8}
    assert read(model_type="mistral", **dims).sliding_window == 4096
    assert read(model_type="mistral", **dims).layer_types == ("sliding",) * 4
    off = read(model_type="mistral", **dims, sliding_window=None)
    assert off.sliding_window is None and off.layer_types == ()


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_qwen_windows_need_their_switch(kind: str) -> None:
    dims = {**DIMS, "num_key_value_heads": 2}
    off = read(model_type=kind, **dims, sliding_window=32, max_window_layers=2)
    on = read(
        model_type=kind, **dims, sliding_window=32, max_window_layers=2, use_sliding_window=True
    )
    assert off.sliding_window is None and not off.notes
    assert on.layer_types == ("full", "full", "sliding", "sliding") and on.sliding_window == 32


def test_qwen2_biases_q_k_v_only_and_qwen3_norms_heads() -> None:
    qwen2 = read(model_type="qwen2", **DIMS, num_key_value_heads=2)
    qwen3 = read(model_type="qwen3", **DIMS, num_key_value_heads=2)
    assert qwen2.attention_bias and not qwen2.attention_output_bias and qwen2.qk_norm == "none"
    assert qwen3.qk_norm == "head" and qwen3.head_dim == 128 and not qwen3.attention_bias


def test_phi3_dropouts_partial_rotary_and_window() -> None:
    model = read(
        model_type="phi3", **DIMS, resid_pdrop=0.1, embd_pdrop=0.1, sliding_window=2047,
        partial_rotary_factor=0.75, original_max_position_embeddings=4096,
    )  # fmt: skip
    assert model.residual_dropout == 0.1 and model.embedding_dropout == 0.0
    assert model.rotary_dim == 12 and set(model.layer_types) == {"sliding"}
    assert model.notes == (
        "config key 'embd_pdrop' = 0.1: the model code has no embedding dropout",
    )


def test_gemma2() -> None:
    model = read(
        model_type="gemma2", **DIMS, num_key_value_heads=2, head_dim=32, hidden_act="gelu",
        hidden_activation="gelu_pytorch_tanh", cache_implementation="hybrid",
    )  # fmt: skip
    assert model.norm_placement == "sandwich" and model.norm_unit_offset and model.embedding_scale
    assert model.attn_logit_softcapping == 50.0 and model.final_logit_softcapping == 30.0
    assert model.layer_types == ("sliding", "full", "sliding", "full")
    assert model.tie_word_embeddings and model.hidden_act == "gelu_pytorch_tanh"
    assert model.head_dim == 32 and not model.notes


def test_gemma3_takes_the_text_model_and_notes_the_tower() -> None:
    model = read(
        architectures=["Gemma3ForConditionalGeneration"], boi_token_index=255999,
        eoi_token_index=256000, eos_token_id=[1, 106], image_token_index=262144,
        initializer_range=0.02, mm_tokens_per_image=256, model_type="gemma3",
        text_config={"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
                     "num_hidden_layers": 34, "sliding_window": 1024,
                     "rope_scaling": {"factor": 8.0, "rope_type": "linear"}},
        torch_dtype="bfloat16", transformers_version="4.50.0.dev0",
        vision_config={"hidden_size": 1152, "model_type": "siglip_vision_model"},
    )  # fmt: skip
    assert model.model_type == "gemma3_text" and model.qk_norm == "head"
    assert (model.vocab_size, model.num_attention_heads, model.num_key_value_heads) == (
        262208, 8, 4,
    )  # fmt: skip
    assert model.layer_types[:6] == ("sliding",) * 5 + ("full",) and model.sliding_window == 1024
    assert model.dtype == "bfloat16"
    assert len(model.notes) == 2 and "vision tower" in model.notes[0]


def test_olmo2_norms_after_and_over_all_heads() -> None:
    model = read(model_type="olmo2", **DIMS)
    assert model.norm_placement == "post" and model.qk_norm == "full"


def test_mixtral() -> None:
    model = read(model_type="mixtral", **DIMS, num_key_value_heads=2, sliding_window=None)
    assert model.moe is not None and model.moe.num_experts == 8
    assert model.moe.moe_intermediate_size == 160 and model.moe.sparse_layers == (0, 1, 2, 3)
    assert model.sliding_window is None


def test_qwen2_moe_shared_expert_and_sparse_layers() -> None:
    model = read(
        model_type="qwen2_moe", **DIMS, num_key_value_heads=4, decoder_sparse_step=2,
        mlp_only_layers=[1], shared_expert_intermediate_size=320, num_experts=6,
        moe_intermediate_size=32, num_experts_per_tok=2, sliding_window=0,
    )  # fmt: skip
    assert model.moe is not None and model.moe.sparse_layers == (3,)
    assert model.moe.shared_intermediate_size == 320 and model.moe.shared_expert_gate
    assert model.attention_bias and not model.attention_output_bias


def test_qwen3_moe_has_no_shared_expert() -> None:
    model = read(model_type="qwen3_moe", **DIMS, num_key_value_heads=4, head_dim=128)
    assert model.moe is not None and model.moe.shared_intermediate_size == 0
    assert model.moe.num_experts == 128 and model.qk_norm == "head"


def test_deepseek_v2_lite_full_rank_query() -> None:
    model = read(
        model_type="deepseek_v2", **DIMS, q_lora_rank=None, kv_lora_rank=512, n_routed_experts=64,
        n_shared_experts=2, num_experts_per_tok=6, moe_intermediate_size=1408,
        first_k_dense_replace=1, aux_loss_alpha=0.001, moe_layer_freq=1,
        auto_map={"AutoConfig": "configuration_deepseek.DeepseekV2Config"},
    )  # fmt: skip
    assert model.mla is not None and model.mla.q_lora_rank is None
    assert model.moe is not None and model.moe.sparse_layers == (1, 2, 3)
    assert model.moe.shared_intermediate_size == 2816 and not model.moe.correction_bias
    assert model.head_dim == 192 and model.rotary_dim == 64
    assert [note[:9] for note in model.notes] == ["auto_map:"]


def test_deepseek_v3_notes_prediction_layers_and_quantization() -> None:
    model = read(
        model_type="deepseek_v3", **DIMS, num_nextn_predict_layers=1, first_k_dense_replace=3,
        quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]},
    )  # fmt: skip
    assert model.moe is not None and model.moe.correction_bias and model.moe.sparse_layers == (3,)
    assert model.mla is not None and model.mla.q_lora_rank == 1536
    assert "num_nextn_predict_layers = 1" in model.notes[0] and "'fp8'" in model.notes[1]


def test_gpt_oss_sinks_and_biases() -> None:
    model = read(
        model_type="gpt_oss", **DIMS, num_key_value_heads=4, num_local_experts=32,
        experts_per_token=4, initial_context_length=4096, swiglu_limit=7.0,
    )  # fmt: skip
    assert model.attention_sinks and model.attention_bias and model.attention_output_bias
    assert model.moe is not None and model.moe.router_bias and model.moe.expert_bias
    assert model.layer_types == ("sliding", "full", "sliding", "full")
    assert model.sliding_window == 128 and model.head_dim == 64 and not model.notes


def test_stated_layer_types_win_and_unknown_ones_are_refused() -> None:
    dims = {**DIMS, "num_key_value_heads": 2, "sliding_window": 16}
    model = read(model_type="gemma2", **dims, layer_types=["full_attention"] * 4)
    assert model.layer_types == () and model.sliding_window is None
    with pytest.raises(NotInThisVersionError, match="linear_attention"):
        read(model_type="gemma2", **dims, layer_types=["linear_attention"] * 4)
    with pytest.raises(ConfigError, match="one for each of the 4 layers"):
        read(model_type="gemma2", **dims, layer_types=["sliding_attention"])


def test_unknown_keys_are_noted_and_known_irrelevant_ones_are_not() -> None:
    model = read(model_type="llama", **DIMS, use_cache=True, wobble=3, _private=1, later=None)
    assert model.notes == ("config key 'wobble' not used",)
    many = read(model_type="llama", **DIMS, **{f"x{i}": i for i in range(20)})
    assert many.notes[-1] == "8 more config keys not used"


def test_router_loss_and_window_of_a_family_without_one_are_noted() -> None:
    model = read(model_type="llama", **DIMS, sliding_window=4096)
    assert model.notes == ("config key 'sliding_window' not used",)
    moe = read(model_type="mixtral", **DIMS, num_key_value_heads=2, output_router_logits=True)
    assert "router loss" in moe.notes[0]


def test_every_family_is_named_in_a_test() -> None:
    from pathlib import Path

    files = Path(__file__).parent.glob("test_hf_import*.py")
    text = "".join(file.read_text(encoding="utf-8") for file in files)
    assert not [kind for kind in FAMILIES if f'"{kind}"' not in text]
