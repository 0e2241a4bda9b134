"""Small configurations of the families, two or three layers each, as their config.json."""

from __future__ import annotations

from typing import Any

_LLAMA_LIKE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 320,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GPT_LIKE: dict[str, Any] = {
    "n_embd": 128,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 256,
    "vocab_size": 1000,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def _llama_like(model_type: str, **changes: Any) -> dict[str, Any]:
    return {"model_type": model_type, **_LLAMA_LIKE, **changes}


_LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 96,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "moe_intermediate_size": 96,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
    "num_hidden_layers": 3,
}

TINY: dict[str, dict[str, Any]] = {
    "llama": _llama_like("llama"),
    "mistral": _llama_like("mistral", sliding_window=None),
    "qwen2": _llama_like("qwen2", tie_word_embeddings=True),
    "qwen3": _llama_like("qwen3", head_dim=48),
    "phi3": _llama_like("phi3"),
    "gemma2": _llama_like("gemma2", head_dim=48, sliding_window=32),
    "gemma3_text": _llama_like(
        "gemma3_text", head_dim=48, sliding_window=32, num_hidden_layers=3, sliding_window_pattern=3
    ),
    "gpt2": {"model_type": "gpt2", **_GPT_LIKE},
    "gptj": {"model_type": "gptj", **_GPT_LIKE, "rotary_dim": 16},
    "gpt_neox": {
        "model_type": "gpt_neox",
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 1000,
        "max_position_embeddings": 256,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "opt": {
        "model_type": "opt",
        "hidden_size": 128,
        "ffn_dim": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 1000,
        "max_position_embeddings": 256,
        "word_embed_proj_dim": 128,
    },
    "bloom": {
        "model_type": "bloom",
        "hidden_size": 128,
        "n_layer": 2,
        "n_head": 4,
        "vocab_size": 1000,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "falcon": {
        "model_type": "falcon",
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 1000,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "olmo2": _llama_like("olmo2"),
    "mixtral": _llama_like("mixtral", num_local_experts=4, num_experts_per_tok=2),
    "qwen2_moe": _llama_like(
        "qwen2_moe",
        moe_intermediate_size=96,
        shared_expert_intermediate_size=160,
        num_experts=8,
        num_experts_per_tok=2,
    ),
    "qwen3_moe": _llama_like(
        "qwen3_moe", head_dim=48, moe_intermediate_size=96, num_experts=8, num_experts_per_tok=2
    ),
    "deepseek_v2": _llama_like(
        "deepseek_v2", **_LATENT, topk_method="group_limited_greedy", scoring_func="softmax"
    ),
    "deepseek_v3": _llama_like("deepseek_v3", **_LATENT),
    "gpt_oss": _llama_like(
        "gpt_oss",
        head_dim=32,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=32,
    ),
}

#: Families that must run their own attention: the kernel has no soft caps, windows, sinks or ALiBi,
#: and GPT-J, Falcon and BLOOM call no attention interface.
OWN_ATTENTION: dict[str, str] = {
    "gemma2": "eager",
    "gemma3_text": "eager",
    "gptj": "eager",
    "bloom": "eager",
    "falcon": "eager",
    "gpt_oss": "eager",
}


def attention_of(family: str) -> str:
    return OWN_ATTENTION.get(family, "flash")
