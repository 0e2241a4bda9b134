"""Families with a mixture of experts: Mixtral, Qwen MoE, DeepSeek V2 and V3, gpt-oss.

Each reader follows one configuration class of transformers 5.23. The experts of a layer are two
stacked tensors (gate and up in one), the router a linear without bias but in gpt-oss.
Checked by: unit/test_hf_import.py, oracle/test_profile_parameters.py.
"""

from __future__ import annotations

from memcalc.inputs.hf_common import (
    Kwargs,
    attention_biases,
    every,
    llama_dims,
    sparse_layers,
    window,
)
from memcalc.inputs.hf_fields import Fields
from memcalc.inputs.model import LayerType, MlaConfig, MoeConfig


def mixtral(f: Fields) -> Kwargs:
    """Mixtral: every layer sparse, intermediate_size is the width of an expert."""
    dims = llama_dims(f, kv_default=8, max_positions=131_072)
    layers = dims["num_hidden_layers"]
    f.note_unless("router_jitter_noise", 0, 0.0, None, why="router noise is not priced")
    moe = MoeConfig(
        num_experts=f.size("num_local_experts", "num_experts", default=8),
        num_experts_per_tok=f.size("num_experts_per_tok", default=2),
        moe_intermediate_size=dims["intermediate_size"],
        sparse_layers=tuple(range(layers)),
        normalize_top_k=True,
    )
    return {**dims, "moe": moe, **window(f, None, ("sliding",) * layers)}


def qwen2_moe(f: Fields) -> Kwargs:
    """Qwen1.5-MoE, Qwen2-MoE: a shared expert behind a sigmoid gate in each sparse layer."""
    dims = llama_dims(f, kv_default=16, max_positions=32_768)
    layers = dims["num_hidden_layers"]
    moe = MoeConfig(
        num_experts=f.size("num_experts", default=60),
        num_experts_per_tok=f.size("num_experts_per_tok", default=4),
        moe_intermediate_size=f.size("moe_intermediate_size", default=1408),
        sparse_layers=sparse_layers(f, layers),
        shared_intermediate_size=f.size("shared_expert_intermediate_size", default=5632),
        shared_expert_gate=True,
        normalize_top_k=f.flag("norm_topk_prob", False),
    )
    bias = f.flag("qkv_bias", True)
    return {**dims, "attention_bias": bias, "moe": moe, **_qwen2_moe_window(f, layers)}


def _qwen2_moe_window(f: Fields, layers: int) -> Kwargs:
    """Every second layer below max_window_layers slides, if use_sliding_window says so."""
    if not f.flag("use_sliding_window", False):
        f.skip("sliding_window", "max_window_layers", "layer_types")
        return {}
    limit = f.size("max_window_layers", default=28, minimum=0)
    types: tuple[LayerType, ...] = tuple(
        "sliding" if (i + 1) % 2 and i < limit else "full" for i in range(layers)
    )
    return window(f, 4096, types)


def qwen3_moe(f: Fields) -> Kwargs:
    """Qwen3-MoE: no shared expert; norms of q and k over each head; every layer slides or none."""
    dims = llama_dims(f, kv_default=4, max_positions=32_768)
    layers = dims["num_hidden_layers"]
    moe = MoeConfig(
        num_experts=f.size("num_experts", "num_local_experts", default=128),
        num_experts_per_tok=f.size("num_experts_per_tok", default=8),
        moe_intermediate_size=f.size("moe_intermediate_size", default=768),
        sparse_layers=sparse_layers(f, layers),
        normalize_top_k=f.flag("norm_topk_prob", False),
    )
    used = f.flag("use_sliding_window", False)
    f.skip("max_window_layers", "sliding_window")
    windows = window(f, 4096, ("sliding",) * layers) if used else {}
    return {
        **dims,
        **attention_biases(f),
        "qk_norm": "head",
        "moe": moe,
        **windows,
    }


def deepseek_v2(f: Fields) -> Kwargs:
    """DeepSeek-V2: latent attention, dense first layers, shared experts (arXiv:2405.04434)."""
    f.config = {"n_shared_experts": 2, "n_routed_experts": 64, "first_k_dense_replace": 0,
                "moe_intermediate_size": 1407, **f.config}  # fmt: skip
    return {**_deepseek(f, 2048), "mlp_bias": f.flag("mlp_bias", False)}


def deepseek_v3(f: Fields) -> Kwargs:
    """DeepSeek-V3 (arXiv:2412.19437): V2's block, a correction bias in the router, MTP noted."""
    f.config = {"n_shared_experts": 1, "n_routed_experts": 256, "first_k_dense_replace": 3,
                "moe_intermediate_size": 2048, "num_experts_per_tok": 8, **f.config}  # fmt: skip
    f.skip("num_nextn_predict_layers", "num_mtp_layers")
    mtp = f.config.get("num_nextn_predict_layers") or f.config.get("num_mtp_layers")
    if mtp:
        f.notes.append(
            f"num_nextn_predict_layers = {mtp}: multi-token-prediction layers are not priced"
        )
    return _deepseek(f, 4096, correction_bias=True)


def _deepseek(f: Fields, max_positions: int, correction_bias: bool = False) -> Kwargs:
    mla = MlaConfig(
        kv_lora_rank=f.size("kv_lora_rank", default=512),
        qk_nope_head_dim=f.size("qk_nope_head_dim", default=128),
        qk_rope_head_dim=f.size("qk_rope_head_dim", default=64),
        v_head_dim=f.size("v_head_dim", default=128),
        q_lora_rank=f.size_or_none("q_lora_rank", default=1536),
    )
    f.config = {k: v for k, v in f.config.items() if k not in ("head_dim", "qk_head_dim")}
    f.config["head_dim"] = mla.qk_nope_head_dim + mla.qk_rope_head_dim
    f.skip("num_key_value_heads")  # every head has its own key and value out of the latent
    dims = llama_dims(f, kv_default=None, max_positions=max_positions)
    expert = f.size("moe_intermediate_size")
    shared = f.size_or_none("n_shared_experts") or 0
    first = f.size("first_k_dense_replace", minimum=0)
    f.note_unless("moe_layer_freq", 1, None, why="every layer after the dense ones is sparse")
    moe = MoeConfig(
        num_experts=f.size("n_routed_experts", "num_local_experts"),
        num_experts_per_tok=f.size("num_experts_per_tok"),
        moe_intermediate_size=expert,
        sparse_layers=tuple(range(first, dims["num_hidden_layers"])),
        shared_intermediate_size=shared * expert,
        correction_bias=correction_bias,
        fp32_router=True,
        **_deepseek_choice(f, correction_bias),
    )
    return {
        **dims,
        **attention_biases(f),
        "num_key_value_heads": dims["num_attention_heads"],
        "rotary_dim": mla.qk_rope_head_dim,
        "mla": mla,
        "moe": moe,
    }


def _deepseek_choice(f: Fields, is_v3: bool) -> Kwargs:
    """How experts are chosen: V3 by sigmoids inside groups, V2 by softmax, in groups or not."""
    f.skip("norm_topk_prob", "scoring_func", "topk_method")
    groups = f.size_or_none("n_group", default=8 if is_v3 else None) or 0
    chosen = f.size_or_none("topk_group", default=4 if is_v3 else None) or 1
    if is_v3:
        normalize = f.flag("norm_topk_prob", True)
        return {"scoring": "sigmoid", "normalize_top_k": normalize, "expert_groups": groups,
                "groups_per_token": chosen}  # fmt: skip
    if f.config.get("topk_method", "greedy") == "greedy":
        return {}
    return {"expert_groups": groups, "groups_per_token": chosen}


def gpt_oss(f: Fields) -> Kwargs:
    """gpt-oss: sinks, biases on attention, router and experts, every second layer sliding."""
    dims = llama_dims(f, kv_default=8, max_positions=131_072, head_dim=64)
    layers = dims["num_hidden_layers"]
    moe = MoeConfig(
        num_experts=f.size("num_local_experts", "num_experts", default=128),
        num_experts_per_tok=f.size("num_experts_per_tok", "experts_per_token", default=4),
        moe_intermediate_size=dims["intermediate_size"],
        sparse_layers=tuple(range(layers)),
        router_bias=True,
        expert_bias=True,
        scoring="softmax-of-chosen",
    )
    return {
        **dims,
        **attention_biases(f, True),
        "attention_sinks": True,
        "moe": moe,
        **window(f, 128, every(layers, 2)),
    }
