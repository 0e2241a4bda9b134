"""Families with llama's block: gated MLP, RMS norms, rotary positions, dense.

Each reader follows one configuration class of transformers 5.23, the defaults of missing keys
included; the sizes that name a model are required all the same.
Checked by: unit/test_hf_import.py, oracle/test_profile_parameters.py.
"""

from __future__ import annotations

from memcalc.errors import NotInThisVersionError
from memcalc.inputs.hf_common import (
    Kwargs,
    attention_biases,
    derived_head_dim,
    every,
    llama_dims,
    partial_rotary,
    window,
)
from memcalc.inputs.hf_fields import Fields
from memcalc.inputs.model import LayerType


def llama(f: Fields) -> Kwargs:
    """LLaMA 1 to 3.x, SmolLM2 and everything saved as `llama`; one key biases q, k, v and o."""
    return {
        **llama_dims(f, kv_default=None, max_positions=2048),
        **attention_biases(f),
        "mlp_bias": f.flag("mlp_bias", False),
    }


def mistral(f: Fields) -> Kwargs:
    """Mistral-7B: every layer slides when sliding_window is not null (absent: 4096)."""
    dims = llama_dims(f, kv_default=8, max_positions=131_072)
    f.note_unless("layer_types", None, why="this model_type gives every layer the same window")
    return {**dims, **_all_sliding(f, dims["num_hidden_layers"], 4096)}


def _all_sliding(f: Fields, layers: int, default: int | None) -> Kwargs:
    size = f.size_or_none("sliding_window", default=default)
    if size is None:
        return {}
    return {"sliding_window": size, "layer_types": ("sliding",) * layers}


def qwen_window(f: Fields, layers: int) -> Kwargs:
    """Qwen2 and Qwen3: layers from max_window_layers on slide, if use_sliding_window says so."""
    if not f.flag("use_sliding_window", False):
        f.skip("sliding_window", "max_window_layers", "layer_types")
        return {}
    first = f.size("max_window_layers", default=28, minimum=0)
    types: tuple[LayerType, ...] = tuple("sliding" if i >= first else "full" for i in range(layers))
    return window(f, 4096, types)


def qwen2(f: Fields) -> Kwargs:
    """Qwen2 and Qwen2.5: biases on q, k, v and none on o."""
    dims = llama_dims(f, kv_default=32, max_positions=32_768)
    return {**dims, "attention_bias": True, **qwen_window(f, dims["num_hidden_layers"])}


def qwen3(f: Fields) -> Kwargs:
    """Qwen3: norms of q and k over each head; head_dim is its own key (128)."""
    dims = llama_dims(f, kv_default=32, max_positions=32_768, head_dim=128)
    return {
        **dims,
        **attention_biases(f),
        "qk_norm": "head",
        **qwen_window(f, dims["num_hidden_layers"]),
    }


def phi3(f: Fields) -> Kwargs:
    """Phi-3, Phi-4: one fused q-k-v and one fused gate-up projection, dropout on both residuals."""
    dims = llama_dims(f, kv_default=None, max_positions=4096)
    f.note_unless("attention_bias", False, None, why="the model code has no biases")
    f.note_unless("embd_pdrop", 0, 0.0, None, why="the model code has no embedding dropout")
    return {
        **dims,
        "residual_dropout": f.rate("resid_pdrop"),
        "rotary_dim": partial_rotary(f, dims["head_dim"], "partial_rotary_factor", 1.0),
        **_all_sliding(f, dims["num_hidden_layers"], None),
    }


def olmo2(f: Fields) -> Kwargs:
    """OLMo-2: norms after attention and MLP, none before; q and k normed over all heads at once."""
    return {
        **llama_dims(f, kv_default=None, max_positions=2048),
        **attention_biases(f),
        "norm_placement": "post",
        "qk_norm": "full",
    }


def gemma2(f: Fields) -> Kwargs:
    """Gemma 2: four norms a block, two soft caps, every second layer sliding."""
    f.config = {"num_key_value_heads": 4, "head_dim": 256, **f.config}
    kwargs = _gemma(f, max_positions=8192)
    return {
        **kwargs,
        "attn_logit_softcapping": f.number_or_none("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": f.number_or_none("final_logit_softcapping", 30.0),
        **window(f, 4096, every(kwargs["num_hidden_layers"], 2)),
    }


def gemma3_text(f: Fields) -> Kwargs:
    """Gemma 3: norms of q and k over each head; five sliding layers to a full one.

    Hub files leave out what equals the class default, so only three sizes are required.
    """
    f.config = {
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262_208,
        **f.config,
    }  # fmt: skip
    kwargs = _gemma(f, max_positions=131_072)
    pattern = f.size("sliding_window_pattern", "_sliding_window_pattern", default=6)
    return {
        **kwargs,
        "qk_norm": "head",
        "attn_logit_softcapping": f.number_or_none("attn_logit_softcapping"),
        "final_logit_softcapping": f.number_or_none("final_logit_softcapping"),
        **window(f, 4096, every(kwargs["num_hidden_layers"], pattern)),
    }


def gemma3(f: Fields) -> Kwargs:
    """Gemma 3 with its vision tower: the text model is taken, the tower noted as not priced."""
    text = f.mapping("text_config")
    outer = f.config
    f.config = {**text, **{k: v for k, v in outer.items() if k in _FROM_OUTER and v is not None}}
    if "dtype" not in f.config and "torch_dtype" not in f.config:
        f.config["dtype"] = outer.get("dtype") or outer.get("torch_dtype")
    f.config["model_type"] = "gemma3_text"  # whose code runs once the tower is left out
    kwargs = gemma3_text(f)
    f.notes.append("vision_config: the vision tower and its projector are not priced")
    leftover = [key for key in outer if key not in _OUTER_KEYS and not key.startswith("_")]
    f.config.update({key: outer[key] for key in leftover if key not in f.config})
    return kwargs


_FROM_OUTER = ("tie_word_embeddings", "quantization_config", "auto_map")
_OUTER_KEYS = ("text_config", "vision_config", "dtype", "torch_dtype", *_FROM_OUTER)


def _gemma(f: Fields, max_positions: int) -> Kwargs:
    if f.flag("use_bidirectional_attention", False):
        raise NotInThisVersionError(
            "use_bidirectional_attention: got true, not in this version; rule: causal attention"
        )
    f.skip("hidden_act")  # written by old files, never read by the model code
    dims = llama_dims(f, kv_default=None, max_positions=max_positions)
    return {
        **dims,
        **attention_biases(f),
        "tie_word_embeddings": f.flag("tie_word_embeddings", True),
        "hidden_act": f.activation("hidden_activation", "gelu_pytorch_tanh"),
        "norm_placement": "sandwich",
        "norm_unit_offset": True,
        "embedding_scale": True,
    }


def baichuan(f: Fields) -> Kwargs:
    """Baichuan 1 and 2: llama's block with one fused projection W_pack; no transformers class.

    Both sizes say `baichuan`. The rule: the 13B files state model_max_length and no
    max_position_embeddings, and use ALiBi; the 7B files state max_position_embeddings, and use
    RoPE. hidden_size = 5120 (13B) or 4096 (7B) is the cross-check, a contradiction is noted.
    Source: the configuration and modeling files published with the four models on the Hub.
    """
    hidden, heads = f.size("hidden_size"), f.size("num_attention_heads")
    alibi = f.has("model_max_length") and not f.has("max_position_embeddings")
    positions = f.size("max_position_embeddings", "model_max_length", default=4096)
    if alibi != (hidden == 5120):
        f.notes.append(
            f"baichuan: read as {'ALiBi' if alibi else 'RoPE'} from its keys, though hidden_size = "
            f"{hidden} is not the one published with it"
        )
    return {
        "vocab_size": f.size("vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": f.size("intermediate_size"),
        "num_hidden_layers": f.layers("num_hidden_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": derived_head_dim(hidden, heads),
        "max_position_embeddings": positions,
        "position_embedding": "alibi" if alibi else "rope",
        "tie_word_embeddings": f.flag("tie_word_embeddings", False),
        "hidden_act": f.activation("hidden_act", "silu"),
    }
