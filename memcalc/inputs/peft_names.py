"""Names of a family's linears: as its code calls them, as the ledger does, and PEFT's defaults.

A name in `--lora-targets` means what PEFT takes it to mean: every linear whose path ends in it.
Source: modeling files of transformers 5.23; PEFT 0.21.2, utils/constants.py
(TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING). Checked by: oracle/test_peft.py.
"""

from __future__ import annotations

from typing import Final

from memcalc.errors import ConfigError, NotInThisVersionError, unknown
from memcalc.inputs.model import ModelConfig

ALL_LINEAR: Final = "all-linear"
_LLAMA: Final = {
    name: name
    for name in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
}
_FUSED: Final = {name: name for name in ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")}
_GPT2: Final = {
    "c_attn": "qkv_proj", "attn.c_proj": "o_proj", "c_fc": "up_proj", "mlp.c_proj": "down_proj",
}  # fmt: skip
_NEOX: Final = {
    "query_key_value": "qkv_proj", "dense": "o_proj", "dense_h_to_4h": "up_proj",
    "dense_4h_to_h": "down_proj",
}  # fmt: skip
#: model_type: path of a linear (as far as it tells it from others) -> the ledger's name.
_LINEARS: Final[dict[str, dict[str, str]]] = {
    "phi3": _FUSED,
    "gpt2": _GPT2,
    "openai-gpt": _GPT2,
    "gptj": {
        **{name: name for name in ("q_proj", "k_proj", "v_proj")},
        "out_proj": "o_proj", "fc_in": "up_proj", "fc_out": "down_proj",
    },
    "gpt_neox": _NEOX,
    "bloom": _NEOX,
    "falcon": _NEOX,
    "opt": {
        **{name: name for name in ("q_proj", "k_proj", "v_proj")},
        "out_proj": "o_proj", "fc1": "up_proj", "fc2": "down_proj",
    },
    "chatglm": {
        "query_key_value": "qkv_proj", "attention.dense": "o_proj",
        "dense_h_to_4h": "gate_up_proj", "dense_4h_to_h": "down_proj",
    },
    "baichuan": {**_LLAMA, "W_pack": "qkv_proj"},
    "bert": {
        "query": "q_proj", "key": "k_proj", "value": "v_proj", "attention.output.dense": "o_proj",
        "intermediate.dense": "up_proj", "output.dense": "down_proj",
        "transform.dense": "head_dense",
    },
}  # fmt: skip
_QV: Final = ("q_proj", "v_proj")
#: Of both halves; a decoder's attention to the encoder is `EncDecAttention`.
_T5: Final = {
    f"{module}.{letter}": f"{part}{letter}_proj"
    for module, part in (("SelfAttention", ""), ("EncDecAttention", "cross_"))
    for letter in "qkvo"
}
#: Families with experts that all-linear leaves alone: no linears, and not among those PEFT wraps.
_PLAIN_EXPERTS: Final = ("gpt_oss",)
#: PEFT's targets where none are stated; a family that is not here has no default.
_DEFAULTS: Final[dict[str, tuple[str, ...]]] = {
    "bert": ("query", "value"), "t5": ("q", "v"), "mt5": ("q", "v"),
    "gpt2": ("c_attn",), "bloom": ("query_key_value",), "gpt_neox": ("query_key_value",),
    "falcon": ("query_key_value",), "chatglm": ("query_key_value",),
    **dict.fromkeys(
        ("opt", "gptj", "llama", "mistral", "mixtral", "gemma", "gemma2", "gemma3_text", "qwen2",
         "qwen3"), _QV,
    ),
}  # fmt: skip


#: The same of IA3 (TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING).
_IA3: Final[dict[str, tuple[str, ...]]] = {
    **dict.fromkeys(("llama", "mistral"), ("k_proj", "v_proj", "down_proj")),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text", "qwen2", "qwen3"), (*_QV, "down_proj")),
    **dict.fromkeys(("bloom", "gpt_neox", "falcon"), ("query_key_value", "dense_4h_to_h")),
    "gpt2": ("c_attn", "mlp.c_proj"), "opt": ("q_proj", "k_proj", "fc2"),
    "gptj": (*_QV, "fc_out"),
}  # fmt: skip


#: The same of AdaLoRA (TRANSFORMERS_MODELS_TO_ADALORA_TARGET_MODULES_MAPPING), where it differs.
_ADALORA: Final[dict[str, tuple[str, ...]]] = {
    **{name: targets for name, targets in _DEFAULTS.items()
       if name not in ("mistral", "mixtral", "falcon", "chatglm")},
    "opt": ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
    "t5": ("q", "k", "v", "o", "wi", "wo"), "mt5": ("q", "k", "v", "o", "wi_0", "wi_1", "wo"),
}  # fmt: skip
_OF_METHOD: Final = {"ia3": _IA3, "adalora": _ADALORA}


def linears(config: ModelConfig) -> dict[str, str]:
    """The linears of a family's blocks: name in its code -> the ledger's name."""
    if config.mla is not None:
        raise NotInThisVersionError(
            f"peft: adapters on latent attention ({config.model_type}) are not in this version"
        )
    found = _LINEARS.get(config.model_type, _LLAMA)
    if (
        config.model_type == "chatglm" and not config.gated_mlp
    ):  # the first; its successors are gated
        found = {**found, "dense_h_to_4h": "up_proj"}
    if config.is_encoder_decoder:
        gated = {"wi_0": "gate_proj", "wi_1": "up_proj", "wo": "down_proj"}
        found = {**_T5, **(gated if config.gated_mlp else {"wi": "up_proj", "wo": "down_proj"})}
    if config.moe is not None:  # experts are no linears of transformers' code, but stacked weights
        found = {name: own for name, own in found.items() if own in ("q_proj", "k_proj", "v_proj",
                                                                     "o_proj")}  # fmt: skip
    return found


def target_linears(
    config: ModelConfig, targets: tuple[str, ...], method: str = "lora"
) -> tuple[str, ...]:
    """The ledger's names of the linears that targets mean in this model, in the order of the ledger.

    Raises ConfigError for names the model has not, and where PEFT has no default for the family.
    """
    known = linears(config)
    if not targets:
        targets = _OF_METHOD.get(method, _DEFAULTS).get(config.model_type, ())
        if not targets:
            raise ConfigError(
                f"lora_targets: got none, and PEFT has no default for {config.model_type}; valid: "
                f"{ALL_LINEAR}, {', '.join(known)}"
            )
    if ALL_LINEAR in targets:
        if len(targets) > 1:
            raise ConfigError(f"lora_targets: got {','.join(targets)}; rule: {ALL_LINEAR} alone")
        if config.moe is not None and config.model_type not in _PLAIN_EXPERTS:
            raise NotInThisVersionError(
                f"lora_targets: {ALL_LINEAR} of {config.model_type}, whose router and experts PEFT wraps, "
                f"is not in this version; valid: {', '.join(known)}"
            )
        if (config.word_embed_proj_dim or config.hidden_size) != config.hidden_size:
            raise NotInThisVersionError(
                f"lora_targets: {ALL_LINEAR} of {config.name}, which has linears outside its layers, is not "
                f"in this version; valid: {', '.join(known)}"
            )
        return tuple(known.values())
    chosen: set[str] = set()
    for target in targets:
        meant = {
            own
            for path, own in known.items()
            if target in (own, path) or path.endswith(f".{target}") or target.endswith(f".{path}")
        }
        if not meant:
            raise unknown("lora_targets", target, [*known, ALL_LINEAR])
        chosen |= meant
    return tuple(own for own in known.values() if own in chosen)
