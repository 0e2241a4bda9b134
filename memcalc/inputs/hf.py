"""From a Hugging Face config.json to a ModelConfig.

`model_type` picks a family reader (hf_llama, hf_gpt, hf_chatglm, hf_moe, hf_encoders); every key it
does not read is either known to be irrelevant (hf_keys) or becomes a note. Nothing is executed.
"""

from __future__ import annotations

from typing import Any

from memcalc.errors import ConfigError, NotInThisVersionError, nearest
from memcalc.inputs import hf_chatglm, hf_encoders, hf_gpt, hf_llama, hf_moe
from memcalc.inputs.files import shown
from memcalc.inputs.hf_common import Family, general_notes, unread_notes
from memcalc.inputs.hf_fields import DTYPES, Fields
from memcalc.inputs.hf_files import load_config
from memcalc.inputs.hf_keys import IRRELEVANT_KEYS
from memcalc.inputs.model import ModelConfig

__all__ = ["FAMILIES", "load_config", "model_from_config"]

#: model_type -> reader of its keys.
FAMILIES: dict[str, Family] = {
    "llama": hf_llama.llama,
    "mistral": hf_llama.mistral,
    "qwen2": hf_llama.qwen2,
    "qwen3": hf_llama.qwen3,
    "phi3": hf_llama.phi3,
    "olmo2": hf_llama.olmo2,
    "gemma2": hf_llama.gemma2,
    "gemma3": hf_llama.gemma3,
    "gemma3_text": hf_llama.gemma3_text,
    "baichuan": hf_llama.baichuan,
    "gpt2": hf_gpt.gpt2,
    "openai-gpt": hf_gpt.openai_gpt,
    "gptj": hf_gpt.gptj,
    "gpt_neox": hf_gpt.gpt_neox,
    "opt": hf_gpt.opt,
    "bloom": hf_gpt.bloom,
    "falcon": hf_gpt.falcon,
    "chatglm": hf_chatglm.chatglm,
    "mixtral": hf_moe.mixtral,
    "qwen2_moe": hf_moe.qwen2_moe,
    "qwen3_moe": hf_moe.qwen3_moe,
    "deepseek_v2": hf_moe.deepseek_v2,
    "deepseek_v3": hf_moe.deepseek_v3,
    "gpt_oss": hf_moe.gpt_oss,
    "t5": hf_encoders.t5,
    "mt5": hf_encoders.mt5,
    "bert": hf_encoders.bert,
}
#: Those that are no decoder alone.
WITH_ENCODER = frozenset({"t5", "mt5", "bert"})
#: Known encoders and encoder-decoders that nothing reads yet.
_ENCODERS = """
    albert bart bigbird clip convbert deberta deberta-v2 distilbert electra ernie layoutlm
    longformer longt5 marian mbart modernbert mpnet pegasus roberta roformer switch_transformers
    umt5 vit whisper xlm-roberta
"""
ENCODERS = frozenset(_ENCODERS.split())


#: Families whose weights hold query, key and value as one matrix.
FUSED_QKV = frozenset(
    {"gpt2", "openai-gpt", "gpt_neox", "bloom", "falcon", "phi3", "chatglm", "baichuan"}
)


def model_from_config(config: dict[str, Any], name: str) -> ModelConfig:
    """The ModelConfig that a config.json describes, with a note for whatever is not priced.

    Missing keys take the defaults of transformers 5.23's configuration classes; the sizes that make
    a model what it is are required. Raises ConfigError in one line for anything else.
    Checked by: unit/test_hf_import.py, unit/test_bad_configs.py.
    """
    if not isinstance(config, dict):
        raise ConfigError(f"config: got {shown(config)}; rule: a JSON object")
    family = _family(config)
    fields = Fields(dict(config))
    try:
        kwargs = family(fields)
        notes = [*fields.notes, *general_notes(fields)]
        notes += [note for note in fields.notes if note not in notes]
        notes += unread_notes(fields, IRRELEVANT_KEYS)
        return ModelConfig(
            name=name,
            model_type=fields.config["model_type"],
            fused_qkv=fields.config["model_type"] in FUSED_QKV,
            dtype=_dtype(fields),
            notes=tuple(notes),
            **kwargs,
        )
    except ConfigError as error:
        raise type(error)(f"{name}: {error}") from None


def _family(config: dict[str, Any]) -> Family:
    kind = config.get("model_type")
    if kind is None:
        raise ConfigError(
            "model_type: missing; rule: the Hugging Face name of the architecture, such as 'llama'"
        )
    if not isinstance(kind, str):
        raise ConfigError(f"model_type: got {shown(kind)}; rule: a name such as 'llama'")
    if kind in FAMILIES:
        return FAMILIES[kind]
    if kind in ENCODERS:
        raise NotInThisVersionError(
            f"model_type: got {kind!r}, an encoder or encoder-decoder, not in this version; "
            f"valid of these: {', '.join(sorted(WITH_ENCODER))}"
        )
    close = nearest(kind, FAMILIES)
    rest = f"nearest: {', '.join(close)}" if close else f"valid: {', '.join(sorted(FAMILIES))}"
    raise ConfigError(f"model_type: got {shown(kind)}, not supported; {rest}")


def _dtype(f: Fields) -> str:
    """dtype of the published weights; files without one hold fp32."""
    value = f.config.get("dtype") or f.config.get("torch_dtype") or "float32"
    if not isinstance(value, str):
        raise ConfigError(f"torch_dtype: got {shown(value)}; rule: a name such as 'bfloat16'")
    name = value.removeprefix("torch.")
    if name not in DTYPES:
        raise ConfigError(f"torch_dtype: got {shown(value)}, not known; valid: {', '.join(DTYPES)}")
    return name
