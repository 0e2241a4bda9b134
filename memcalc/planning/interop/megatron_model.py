"""A model's shape as Megatron-LM's arguments, and the model whose shape a list of arguments has.

Without a model named, the profile of the same shape is taken, and the nearest family with its fields
set where there is none. Source: Megatron-LM core_v0.14.0, megatron/training/arguments.py
(_add_network_size_args, _add_moe_args, _add_mla_args, validate_args: widths where unstated).
Checked by: unit/test_interop_megatron.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from memcalc.errors import ConfigError
from memcalc.inputs.model import MAX_LAYERS, ModelConfig, check_dim
from memcalc.inputs.models import load_model
from memcalc.inputs.profiles import profile_names
from memcalc.planning.interop.facts import Facts
from memcalc.planning.interop.rows import NEAREST, Reading, Row, always, fixed, seen

_POSITIONS: Final = {"rope": "rope", "learned": "learned_absolute", "none": "none"}
_FREQUENCY: Final = re.compile(r"\(?((?:\[[01](?:,[01])*\](?:\*\d{1,4})?\+?)+)\)?(?:\*(\d{1,4}))?")
_TERM: Final = re.compile(r"\[([01](?:,[01])*)\](?:\*(\d{1,4}))?")


def _of(
    name: str, when: Callable[[ModelConfig], Any] = lambda config: True
) -> Callable[[Facts], Any]:
    """A field of the model, None where `when` is false. Dots reach inside: moe.num_experts."""

    def value(facts: Facts) -> Any:
        if not when(facts.config):
            return None
        found: Any = facts.config
        for part in name.split("."):
            found = getattr(found, part)
        return found

    return value


def _flag(when: Callable[[ModelConfig], Any]) -> Callable[[Facts], bool | None]:
    return lambda facts: True if when(facts.config) else None


def _experts(config: ModelConfig) -> bool:
    return config.moe is not None


def _latent(config: ModelConfig) -> bool:
    return config.mla is not None


def _grouped(config: ModelConfig) -> bool:
    return config.mla is None and config.num_key_value_heads != config.num_attention_heads


def _frequency(facts: Facts) -> str | None:
    """Which layers have experts: 1 for all, else a list in Megatron's notation."""
    config = facts.config
    if config.moe is None:
        return None
    layers = [int(config.is_sparse(layer)) for layer in range(config.num_hidden_layers)]
    dense = layers.index(1) if 1 in layers else len(layers)
    if all(layers):
        return "1"
    if all(layers[dense:]):
        return f"([0]*{dense}+[1]*{len(layers) - dense})"
    return f"[{','.join(map(str, layers))}]"


def _partial(config: ModelConfig) -> bool:
    return config.rotary_dim not in (None, config.head_dim)


MODEL_ROWS: Final[tuple[Row, ...]] = (
    seen("num-layers", "count", "MODEL, --layers", _of("num_hidden_layers")),
    seen("hidden-size", "count", "MODEL", _of("hidden_size")),
    seen("ffn-hidden-size", "count", "MODEL", _of("intermediate_size"),
         "4 x hidden-size where absent, of a gated MLP two thirds of it"),
    seen("num-attention-heads", "count", "MODEL", _of("num_attention_heads")),
    seen("group-query-attention", "switch", "MODEL", _flag(_grouped)),
    seen("num-query-groups", "count", "MODEL", _of("num_key_value_heads", _grouped)),
    seen("kv-channels", "count", "MODEL", _of("head_dim", lambda c: not _latent(c)),
         "hidden-size over heads where absent"),
    seen("max-position-embeddings", "count", "MODEL",
         lambda f: max(f["seq_len"], f.config.max_position_embeddings)),
    seen("position-embedding-type", "text", "MODEL",
         lambda f: _POSITIONS.get(f.config.position_embedding), "learned_absolute where absent"),
    seen("use-rotary-position-embeddings", "switch", "MODEL", lambda f: None, "rope's older name"),
    seen("quick-geglu", "switch", "MODEL", lambda f: None, "a gated MLP"),
    seen("rotary-percent", "number", "MODEL",
         lambda f: f.config.rotary_dim / f.config.head_dim
         if f.config.rotary_dim and _partial(f.config) else None),
    seen("normalization", "text", "MODEL",
         lambda f: "RMSNorm" if f.config.norm_type == "rmsnorm" else "LayerNorm",
         "LayerNorm where absent"),
    seen("apply-layernorm-1p", "switch", "MODEL", _flag(lambda c: c.norm_unit_offset)),
    seen("swiglu", "switch", "MODEL", _flag(lambda c: c.gated_mlp), "a gated MLP"),
    seen("disable-bias-linear", "switch", "MODEL", _flag(lambda c: not c.mlp_bias)),
    seen("add-qkv-bias", "switch", "MODEL", _flag(lambda c: c.attention_bias and not c.mlp_bias)),
    seen("untie-embeddings-and-output-weights", "switch", "MODEL",
         _flag(lambda c: not c.tie_word_embeddings)),
    seen("qk-layernorm", "switch", "MODEL", _flag(lambda c: c.qk_norm == "head")),
    seen("vocab-size", "count", "MODEL", _of("vocab_size")),
    fixed("make-vocab-size-divisible-by", 128, always, "times tp, as it is estimated"),
    seen("multi-latent-attention", "switch", "MODEL", _flag(_latent)),
    seen("q-lora-rank", "count", "MODEL", _of("mla.q_lora_rank", _latent)),
    seen("kv-lora-rank", "count", "MODEL", _of("mla.kv_lora_rank", _latent)),
    seen("qk-head-dim", "count", "MODEL", _of("mla.qk_nope_head_dim", _latent)),
    seen("qk-pos-emb-head-dim", "count", "MODEL", _of("mla.qk_rope_head_dim", _latent)),
    seen("v-head-dim", "count", "MODEL", _of("mla.v_head_dim", _latent)),
    seen("num-experts", "count", "MODEL", _of("moe.num_experts", _experts)),
    seen("moe-router-topk", "count", "MODEL", _of("moe.num_experts_per_tok", _experts)),
    seen("moe-ffn-hidden-size", "count", "MODEL", _of("moe.moe_intermediate_size", _experts)),
    seen("moe-layer-freq", "text", "MODEL", _frequency, "which layers have experts"),
    seen("moe-shared-expert-intermediate-size", "count", "MODEL",
         lambda f: f.config.moe.shared_intermediate_size or None if f.config.moe else None),
    seen("moe-router-score-function", "text", "MODEL",
         lambda f: "sigmoid" if f.config.moe and f.config.moe.scoring == "sigmoid" else None),
)  # fmt: skip


def fields_of(got: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of ModelConfig that arguments state or imply. Raises ConfigError where one is missing."""
    for key in ("num-layers", "hidden-size", "num-attention-heads"):
        if key not in got:
            raise ConfigError(
                f"megatron, {key}: got none; rule: stated, or --model MODEL beside it"
            )
        check_dim(f"megatron, {key}", got[key])
    hidden, heads = got["hidden-size"], got["num-attention-heads"]
    gated, biased = (
        bool(got.get("swiglu") or got.get("quick-geglu")),
        not got.get("disable-bias-linear"),
    )
    wide = int(4 * hidden * 2 / 3 / 64) * 64 if got.get("swiglu") else 4 * hidden
    positions = {theirs: ours for ours, theirs in _POSITIONS.items()}
    older = "rope" if got.get("use-rotary-position-embeddings") else "learned_absolute"
    kind = str(got.get("position-embedding-type", older))
    found = {
        "num_hidden_layers": got["num-layers"],
        "hidden_size": hidden,
        "intermediate_size": got.get("ffn-hidden-size", wide),
        "num_attention_heads": heads,
        "gated_mlp": gated,
        "norm_type": "rmsnorm" if got.get("normalization") == "RMSNorm" else "layernorm",
        "norm_unit_offset": bool(got.get("apply-layernorm-1p")),
        "position_embedding": positions.get(kind, kind),
        "tie_word_embeddings": not got.get("untie-embeddings-and-output-weights"),
        "mlp_bias": biased,
        "attention_output_bias": biased,
        "attention_bias": biased or bool(got.get("add-qkv-bias")),
        "qk_norm": "head" if got.get("qk-layernorm") else "none",
    }
    if "vocab-size" in got:
        found["vocab_size"] = got["vocab-size"]
    if not got.get("multi-latent-attention"):
        grouped = bool(got.get("group-query-attention"))
        found["num_key_value_heads"] = got.get("num-query-groups", 1) if grouped else heads
        found["head_dim"] = got.get("kv-channels", hidden // max(1, heads))
    return found | _latent_fields(got) | _expert_fields(got)


def _latent_fields(got: Mapping[str, Any]) -> dict[str, Any]:
    if not got.get("multi-latent-attention"):
        return {"mla": None}
    return {
        "mla.q_lora_rank": got.get("q-lora-rank"),
        "mla.kv_lora_rank": got.get("kv-lora-rank", 32),
        "mla.qk_nope_head_dim": got.get("qk-head-dim", 128),
        "mla.qk_rope_head_dim": got.get("qk-pos-emb-head-dim", 64),
        "mla.v_head_dim": got.get("v-head-dim", 128),
    }


def _expert_fields(got: Mapping[str, Any]) -> dict[str, Any]:
    if "num-experts" not in got:
        return {"moe": None}
    dense = got.get("ffn-hidden-size", 4 * got["hidden-size"])
    return {
        "moe.num_experts": got["num-experts"],
        "moe.num_experts_per_tok": got.get("moe-router-topk", 2),
        "moe.moe_intermediate_size": got.get("moe-ffn-hidden-size", dense),
        "moe.shared_intermediate_size": got.get("moe-shared-expert-intermediate-size", 0),
        "moe.sparse_layers": sparse_layers(str(got.get("moe-layer-freq", "1")), got["num-layers"]),
    }


def sparse_layers(text: str, layers: int) -> tuple[int, ...]:
    """Layers with experts: every Nth, or a list such as ([0]*3+[1]*58). Nothing is evaluated."""
    plain = text.replace(" ", "")
    if layers > MAX_LAYERS:
        raise ConfigError(f"megatron, num-layers: got {layers}; rule: at most {MAX_LAYERS}")
    if plain.isdecimal() and len(plain) < 6 and int(plain) > 0:
        return tuple(range(0, layers, int(plain)))
    match = _FREQUENCY.fullmatch(plain)
    if match is None:
        raise ConfigError(
            f"megatron, moe-layer-freq: got {text[:40]!r}; rule: N, or a list as ([0]*3+[1]*58)"
        )
    listed: list[str] = []
    for term, count in _TERM.findall(match[1]):
        listed += term.split(",") * int(count or 1)
    listed *= int(match[2] or 1)
    if len(listed) != layers:
        raise ConfigError(f"megatron, moe-layer-freq: got {len(listed)} layers; rule: {layers}")
    return tuple(layer for layer, sparse in enumerate(listed) if sparse == "1")


def model_of(reading: Reading) -> None:
    """The model: the one stated, the profile of this shape, or a family with its fields set."""
    if reading.config is not None:
        _compare(reading, reading.config)
        return
    fields = fields_of(reading.seen)
    found = [config for config in _profiles() if not _unlike(config, fields)]
    longest = reading.seen.get("max-position-embeddings")
    best = [c for c in found if c.max_position_embeddings == longest] or found
    if best:
        reading.model, reading.config = best[-1].name, best[-1]
        others = ", ".join(c.name for c in found if c is not best[-1])
        beside = f"; of the same shape: {others}" if others else ""
        reading.say("model", NEAREST, f"the shape of {best[-1].name}{beside}")
        return
    _made(reading, fields)


def _profiles() -> list[ModelConfig]:
    return [load_model(name) for name in profile_names("models")]


def _unlike(config: ModelConfig, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields in which a model is another, with the model's own values."""
    own = {name: _inside(config, name) for name in fields}
    return {name: own[name] for name, value in fields.items() if own[name] != value}


def _inside(config: ModelConfig, name: str) -> Any:
    """A field, of a part of the model where the name has a dot; None where it has no such part."""
    outer, _, inner = name.partition(".")
    found = getattr(config, outer)
    return getattr(found, inner, None) if inner else found


def _compare(reading: Reading, config: ModelConfig) -> None:
    """Say where the stated model, which wins, is another than the arguments describe."""
    if {"num-layers", "hidden-size", "num-attention-heads"} - reading.seen.keys():
        return
    fields = fields_of(reading.seen)
    layers = fields["num_hidden_layers"]
    for name, own in _unlike(config, fields).items():
        if name == "num_hidden_layers" and layers < own:
            reading.fields["num_layers"] = layers
        elif name != "moe.sparse_layers":
            said = f"the arguments say {fields[name]}; {config.name} has {own}, which was taken"
            reading.say(f"model.{name}", NEAREST, said)


def _made(reading: Reading, fields: Mapping[str, Any]) -> None:
    """No profile has this shape: a family's profile with every field set."""
    got = reading.seen
    if got.get("multi-latent-attention"):
        raise ConfigError(
            "megatron, model: got latent attention in no profile's shape; rule: --model MODEL, a "
            "config.json"
        )
    gated = bool(fields["gated_mlp"])
    base = "mixtral-8x7b" if "num-experts" in got else "llama-2-7b" if gated else "gpt-3-175b"
    config = load_model(base)
    changed = {name: fields[name] for name in _unlike(config, fields)}
    if fields["position_embedding"] == "learned":
        changed["num_position_rows"] = got.get("max-position-embeddings", 2048)
    if got.get("max-position-embeddings"):
        changed["max_position_embeddings"] = got["max-position-embeddings"]
    if "vocab-size" not in got:
        reading.say("vocab-size", NEAREST, f"not stated: {config.vocab_size}, of {base}")
    changed["name"] = f"megatron-{fields['num_hidden_layers']}x{fields['hidden_size']}"
    reading.fields |= {f"model.{name}": value for name, value in changed.items()}
    reading.model, reading.config = base, config
    reading.say("model", NEAREST, f"no profile has this shape: {base} with its fields set")
