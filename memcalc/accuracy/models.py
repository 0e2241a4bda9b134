"""The model of a row: out of its dimensions and family, or a profile by name.

A row with dimensions is written as the config.json keys of its family and goes through the importer
every other model goes through, so a family's biases, norms and routers are stated in one place. A row
with a name alone means a profile, a Hub id or a file, as on the command line; `num_hidden_layers`,
`vocab_size` and `tied` beside it truncate it, pad its vocabulary, tie or untie it.
Checked by: unit/test_accuracy_models.py, published/test_rows.py (stated parameter counts).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from memcalc.accuracy.notes import NotExpressedError
from memcalc.accuracy.rows import Row
from memcalc.errors import ConfigError
from memcalc.inputs.hf import FAMILIES, WITH_ENCODER, model_from_config
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.models import load_model

Keys = dict[str, Any]

#: Positions of a family where a row states none.
_LEAST_POSITIONS = 2048
_NEEDED = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size",
)  # fmt: skip


def model_of(row: Row) -> tuple[ModelConfig, list[str]]:
    """The decoder of a row, and what was assumed of it.

    Raises NotExpressedError where the row's model cannot be built, with the reason.
    """
    try:
        if row.whole("hidden_size") is None:
            return _named(row), []
        return _built(row)
    except ConfigError as error:
        raise NotExpressedError(str(error)) from None


def _named(row: Row) -> ModelConfig:
    name = row.text("model")
    if name is None:
        raise NotExpressedError("neither a model's name nor its dimensions are stated")
    config = load_model(name)
    vocab, tied = row.whole("vocab_size"), row.flag("tied")
    return replace(
        config,
        vocab_size=config.vocab_size if vocab is None else vocab,
        tie_word_embeddings=config.tie_word_embeddings if tied is None else tied,
    )


def _built(row: Row) -> tuple[ModelConfig, list[str]]:
    missing = [name for name in _NEEDED if row.whole(name) is None]
    if missing:
        raise NotExpressedError(f"{missing[0]} is not stated")
    family = row.text("family") or "llama"
    keys, assumed = _keys(family, row)
    config = _with_positions(row, model_from_config(keys, row.text("model") or family))
    _check_shape(row, config)
    if row.text("family") is None:
        assumed.append("family not stated: llama's block")
    return config, assumed


def _with_positions(row: Row, config: ModelConfig) -> ModelConfig:
    """The longest sequence of a public model of that name and width; a table made once has its rows."""
    try:
        known = load_model(row.text("model") or "")
    except ConfigError:
        return config
    learned = config.position_embedding == "learned"
    if learned or known.hidden_size != config.hidden_size:
        return config
    longest = max(known.max_position_embeddings, config.max_position_embeddings)
    return replace(config, max_position_embeddings=longest)


def _keys(family: str, row: Row) -> tuple[Keys, list[str]]:
    """config.json keys of a row's family, and what was assumed."""
    if family in _WRITERS:
        return _WRITERS[family](row)
    if family in FAMILIES and family not in WITH_ENCODER:
        return {"model_type": family, **_llama(row)}, []
    raise NotExpressedError(f"family {family!r} is not one this version builds")


def _llama(row: Row) -> Keys:
    """Keys that llama and its relatives share; what a row leaves open is the family's default."""
    keys: Keys = {
        "hidden_size": row.whole("hidden_size"),
        "intermediate_size": row.whole("intermediate_size"),
        "num_hidden_layers": row.whole("num_hidden_layers"),
        "num_attention_heads": row.whole("num_attention_heads"),
        "num_key_value_heads": row.whole("num_key_value_heads") or row.whole("num_attention_heads"),
        "vocab_size": row.whole("vocab_size"),
        "max_position_embeddings": max(row.whole("seq") or 0, _LEAST_POSITIONS),
        "head_dim": row.whole("head_dim"),
    }
    if (tied := row.flag("tied")) is not None:
        keys["tie_word_embeddings"] = tied
    return {key: value for key, value in keys.items() if value is not None}


def _gpt2(row: Row, dropout: float | None) -> Keys:
    """GPT-2's keys: learned positions, one for each token of the sequence."""
    keys: Keys = {
        "model_type": "gpt2",
        "n_embd": row.whole("hidden_size"),
        "n_inner": row.whole("intermediate_size"),
        "n_layer": row.whole("num_hidden_layers"),
        "n_head": row.whole("num_attention_heads"),
        "vocab_size": row.whole("vocab_size"),
        "n_positions": row.whole("seq") or _LEAST_POSITIONS,
    }
    if row.flag("tied") is not None:
        keys["tie_word_embeddings"] = row.flag("tied")
    if dropout is not None:
        keys |= dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), dropout)
    return keys


def _gpt2_family(row: Row) -> tuple[Keys, list[str]]:
    """Dropout 0.1 is GPT-2's own and Megatron's default; no published row states another."""
    assumed = [] if row.text("position") else ["positions not stated: learned"]
    return _gpt2(row, None), [*assumed, "dropout not stated: 0.1"]


def _mpt(row: Row) -> tuple[Keys, list[str]]:
    """MPT as benchmarked: GPT-2's block, biases and learned positions included, no dropout."""
    return _gpt2(row, 0.0), []


def _qwen(row: Row) -> tuple[Keys, list[str]]:
    """Qwen-1: llama's block with biases on q, k and v, which is Qwen2's without grouped heads."""
    return {"model_type": "qwen2", **_llama(row)}, ["Qwen-1 priced with the code of Qwen2"]


def _internlm(row: Row) -> tuple[Keys, list[str]]:
    """InternLM-1: llama's block with biases on q, k, v and o."""
    return {"model_type": "llama", "attention_bias": True, **_llama(row)}, []


def _neox(row: Row) -> tuple[Keys, list[str]]:
    keys = {**_llama(row), "model_type": "gpt_neox"}
    return {k: v for k, v in keys.items() if k not in ("num_key_value_heads", "head_dim")}, []


def _bloom(row: Row) -> tuple[Keys, list[str]]:
    return {
        "model_type": "bloom",
        "n_embed": row.whole("hidden_size"),
        "n_layer": row.whole("num_hidden_layers"),
        "n_head": row.whole("num_attention_heads"),
        "vocab_size": row.whole("vocab_size"),
        "seq_length": max(row.whole("seq") or 0, _LEAST_POSITIONS),
    }, []


def _deepseek(row: Row) -> tuple[Keys, list[str]]:
    """DeepSeek V2 and V3; `mla` names the ranks and head widths of latent attention."""
    named = row.pairs("mla")
    ranks = {_MLA.get(key, key): value for key, value in named.items()}
    keys = {
        **_llama(row),
        **ranks,
        "model_type": row.text("family"),
        "n_routed_experts": row.whole("num_experts"),
        "num_experts_per_tok": row.whole("experts_per_token"),
        "moe_intermediate_size": row.whole("moe_intermediate_size"),
        "n_shared_experts": row.whole("shared_experts"),
        "first_k_dense_replace": row.whole("first_dense_layers"),
    }
    return {key: value for key, value in keys.items() if value is not None}, []


_MLA: Final[Mapping[str, str]] = {
    "qk_rope": "qk_rope_head_dim",
    "qk_nope": "qk_nope_head_dim",
    "v": "v_head_dim",
}


def _experts(row: Row) -> tuple[Keys, list[str]]:
    """Families whose every layer is sparse; one that keeps no dense width has its experts' there."""
    family, wide = row.text("family"), row.whole("moe_intermediate_size")
    keys = {
        **_llama(row),
        "model_type": family,
        "num_experts" if family == "qwen3_moe" else "num_local_experts": row.whole("num_experts"),
        "num_experts_per_tok": row.whole("experts_per_token"),
    }
    keys["moe_intermediate_size" if family == "qwen3_moe" else "intermediate_size"] = wide
    return {key: value for key, value in keys.items() if value is not None}, []


_WRITERS: Final[Mapping[str, Callable[[Row], tuple[Keys, list[str]]]]] = {
    "gpt2": _gpt2_family, "mpt": _mpt, "qwen": _qwen, "internlm": _internlm, "gpt_neox": _neox,
    "bloom": _bloom, "deepseek_v2": _deepseek, "deepseek_v3": _deepseek, "mixtral": _experts,
    "qwen3_moe": _experts, "gpt_oss": _experts,
}  # fmt: skip


def _check_shape(row: Row, config: ModelConfig) -> None:
    """Refuse a model the family's code would give another shape than the row states."""
    shapes: dict[str, tuple[object, object]] = {
        "head_dim": (row.whole("head_dim"), config.head_dim),
        "intermediate_size": (row.whole("intermediate_size"), config.intermediate_size),
        "num_key_value_heads": (row.whole("num_key_value_heads"), config.num_key_value_heads),
        "tied": (row.flag("tied"), config.tie_word_embeddings),
        "mlp": (row.text("mlp"), _mlp(config)),
        "position": (row.text("position"), config.position_embedding),
    }
    if config.moe is not None:
        del shapes["intermediate_size"]  # the dense layers'; there may be none
    for name, (stated, built) in shapes.items():
        if stated is not None and stated != built:
            said = f"{name} {stated} with family {row.text('family') or 'llama'}"
            raise NotExpressedError(f"{said}, which has {built}")


def _mlp(config: ModelConfig) -> str:
    """The row's word for a model's MLP."""
    gelu = config.hidden_act.startswith("gelu")
    if config.gated_mlp:
        return "geglu" if gelu else "swiglu"
    return "gelu" if gelu else config.hidden_act
