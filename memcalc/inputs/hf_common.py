"""What the family readers share: heads, windows, sparse layers, and the notes every family gets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from memcalc.errors import ConfigError, NotInThisVersionError
from memcalc.inputs.files import shown
from memcalc.inputs.hf_fields import Fields
from memcalc.inputs.model import LayerType

#: Keyword arguments of ModelConfig.
Kwargs = dict[str, Any]
Family = Callable[[Fields], Kwargs]
#: Most unknown keys named one by one.
MAX_KEY_NOTES = 12


def derived_head_dim(hidden_size: int, num_heads: int) -> int:
    """hidden_size / heads where no head_dim is stated; ConfigError when it is not whole."""
    if hidden_size % num_heads:
        close = sorted(
            (n for n in range(1, min(hidden_size, 2 * num_heads) + 1) if hidden_size % n == 0)
            if num_heads <= 4096
            else [1],
            key=lambda n: abs(n - num_heads),
        )[:1]
        raise ConfigError(
            f"num_attention_heads: got {num_heads}; rule: divides hidden_size = {hidden_size} when "
            f"head_dim is not given; nearest: {', '.join(map(str, close))}"
        )
    return hidden_size // num_heads


def llama_dims(
    f: Fields, *, kv_default: int | None, max_positions: int, head_dim: int | None = None
) -> Kwargs:
    """The keys that every llama-shaped family spells alike; defaults are the family's own."""
    hidden = f.size("hidden_size")
    heads = f.size("num_attention_heads")
    stated = f.size_or_none("head_dim", default=head_dim)
    return {
        "vocab_size": f.size("vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": f.size("intermediate_size"),
        "num_hidden_layers": f.layers("num_hidden_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": f.size_or_none("num_key_value_heads", default=kv_default) or heads,
        "head_dim": stated if stated is not None else derived_head_dim(hidden, heads),
        "max_position_embeddings": f.size("max_position_embeddings", default=max_positions),
        "tie_word_embeddings": f.flag("tie_word_embeddings", False),
        "hidden_act": f.activation("hidden_act", "silu"),
        "attention_dropout": f.rate("attention_dropout"),
    }


def attention_biases(f: Fields, default: bool = False) -> Kwargs:
    """Families where one key puts a bias on q, k, v and on the output projection."""
    bias = f.flag("attention_bias", default)
    return {"attention_bias": bias, "attention_output_bias": bias}


def window(f: Fields, default: int | None, types: tuple[LayerType, ...]) -> Kwargs:
    """sliding_window and layer_types, dropped together when no layer slides.

    An explicit `layer_types` list of the file wins over the family's own pattern.
    """
    size = f.size_or_none("sliding_window", default=default)
    types = _stated_layer_types(f) or types
    if size is None or "sliding" not in types:
        return {}
    return {"sliding_window": size, "layer_types": types}


def _stated_layer_types(f: Fields) -> tuple[LayerType, ...]:
    f.skip("layer_types")
    stated = f.config.get("layer_types")
    if stated is None:
        return ()
    names: dict[object, LayerType] = {"full_attention": "full", "sliding_attention": "sliding"}
    if not isinstance(stated, list):
        raise ConfigError(f"layer_types: got {shown(stated)}; rule: a list of layer type names")
    for entry in stated:
        if not isinstance(entry, str) or entry not in names:
            raise NotInThisVersionError(
                f"layer_types: got {shown(entry)}, not in this version; "
                f"valid: {', '.join(map(str, names))}"
            )
    return tuple(names[entry] for entry in stated)


def every(layers: int, full_each: int) -> tuple[LayerType, ...]:
    """Sliding layers with full attention in each `full_each`-th one (Gemma, gpt-oss)."""
    return tuple("sliding" if (i + 1) % full_each else "full" for i in range(layers))


def sparse_layers(f: Fields, layers: int) -> tuple[int, ...]:
    """Qwen MoE: each decoder_sparse_step-th layer that is not in mlp_only_layers."""
    step = f.size("decoder_sparse_step", default=1)
    dense = set(f.indices("mlp_only_layers"))
    return tuple(i for i in range(layers) if i not in dense and (i + 1) % step == 0)


def partial_rotary(f: Fields, head_dim: int, key: str, default: float) -> int | None:
    """Rotated width of a head: int(head_dim * factor); None when the whole head is rotated.

    The factor sits under its own key in older files and inside rope_parameters in newer ones.
    """
    nested = Fields({**f.mapping("rope_scaling"), **f.mapping("rope_parameters")})
    stated = f.number_or_none(key, default)
    factor = nested.number_or_none("partial_rotary_factor", stated)
    if factor is None or not 0 < factor <= 1:
        raise ConfigError(f"{key}: got {shown(factor)}; rule: 0 < factor <= 1")
    width = int(head_dim * factor)
    if width < 1:
        raise ConfigError(f"{key}: got {shown(factor)}; rule: at least one rotated element a head")
    return None if width == head_dim else width


def general_notes(f: Fields) -> list[str]:
    """Notes on keys that any file may carry, whatever its family."""
    notes: list[str] = []
    f.skip(
        "auto_map",
        "trust_remote_code",
        "custom_pipelines",
        "quantization_config",
        "dtype",
        "torch_dtype",
    )
    if named := [key for key in ("auto_map", "trust_remote_code") if f.config.get(key)]:
        notes.append(
            f"{', '.join(named)}: the file names Python code of its own, never loaded or run; "
            "figures are of the published model_type"
        )
    if quantization := f.mapping("quantization_config"):
        method = quantization.get("quant_method") or "unnamed"
        notes.append(
            f"quantization_config ({shown(method)}): the published weights are quantized; "
            "the precision priced is the one of the setup"
        )
    scaling = {**f.mapping("rope_scaling"), **f.mapping("rope_parameters")}
    kind = scaling.get("rope_type") or scaling.get("type")
    if kind not in (None, "default"):
        notes.append(f"rope scaling ({shown(kind)}): changes no tensor size")
    f.note_unless("output_router_logits", False, None, why="router loss is not priced")
    return notes


def unread_notes(f: Fields, irrelevant: frozenset[str]) -> list[str]:
    """One note for each key that no reader asked for and that is not known to be irrelevant."""
    unread = [
        key
        for key, value in f.config.items()
        if key not in f.read and key not in irrelevant and not key.startswith("_")
        if value is not None
    ]
    notes = [f"config key {shown(key)} not used" for key in unread[:MAX_KEY_NOTES]]
    if len(unread) > MAX_KEY_NOTES:
        notes.append(f"{len(unread) - MAX_KEY_NOTES} more config keys not used")
    return notes
