"""Which code each model_type of transformers 5.23 is: a row of Traits, and the kernels it can call.

Source: transformers/models/<model_type>/modeling_*.py, version 5.23. ChatGLM and Baichuan have no
class there; theirs follow the modeling files published with the weights.
Checked by: oracle/test_hf_families.py.
"""

from __future__ import annotations

from typing import Final

from memcalc.engine.kernels import Traits

_LLAMA: Final = Traits(gelu_by_hand=True)
_TRAITS: Final[dict[str, Traits]] = {
    "qwen3": Traits(qk_norm_at="heads"),
    "qwen3_moe": Traits(qk_norm_at="heads", experts_first=True),
    "gemma3_text": Traits(qk_norm_at="transposed"),
    "olmo2": Traits(norm_casts_last=True, tables="fp32"),
    "phi3": Traits(qkv="slices", rope="cat_both", fused_gate_up=True, keeps_undropped=True),
    "gpt2": Traits(
        start="gpt2",
        block="gpt2",
        qkv="split",
        drop_inside=True,
        upcast_softmax=False,
        gelu_by_hand=True,
    ),  # fmt: skip
    "openai-gpt": Traits(
        start="gpt2",
        block="openai-gpt",
        qkv="split",
        drop_inside=True,
        upcast_softmax=False,
        gelu_by_hand=True,
    ),  # fmt: skip
    "gptj": Traits(start="gptj", block="gptj", gelu_by_hand=True),
    "gpt_neox": Traits(start="gpt_neox", block="gpt_neox", qkv="per_head", rope="cat_each"),
    "opt": Traits(start="opt", scale_query=True, inline_mlp=True),
    "bloom": Traits(start="bloom", block="bloom"),
    "falcon": Traits(start="falcon", block="falcon"),
    "gpt_oss": Traits(norm_casts_last=True, rope="halves", tables="half"),
    "deepseek_v2": Traits(tables="complex", experts_first=True),
    "deepseek_v3": Traits(gelu_by_hand=True, experts_first=True),
    "chatglm": Traits(qkv="split", fused_gate_up=True, repeats_kv=True),
    "baichuan": Traits(qkv="split"),
    "t5": Traits(start="t5", block="t5", gelu_by_hand=True),
    "mt5": Traits(start="t5", block="t5", gelu_by_hand=True),
    "bert": Traits(start="bert", block="bert", gelu_by_hand=True),
}
#: Families whose transformers code calls no fused kernel, or loses a feature if it does.
_OWN: Final = {
    "gemma2": "soft caps of the scores need eager attention",
    "gptj": "its code computes attention itself, in fp32",
    "bloom": "its code computes attention itself, ALiBi added by baddbmm",
    "gpt_oss": "attention sinks need eager attention",
}


#: Families whose code runs no flash kernel, but sdpa with a bias, which the efficient kernel takes.
_WITH_BIAS: Final = frozenset({"t5", "mt5"})


def traits_for(model_type: str) -> Traits:
    """How this family's transformers code is written; llama's way where nothing is said."""
    return _TRAITS.get(model_type, _LLAMA)


def attention_for(model_type: str, wanted: str) -> tuple[str, str]:
    """The attention kernel this family's code runs when `wanted` is asked for, and a note if other."""
    if wanted != "eager" and model_type in _OWN:
        return "eager", f"attention: eager, not {wanted}: {_OWN[model_type]}"
    if wanted in ("flash", "cudnn") and model_type in _WITH_BIAS:
        return "efficient", f"attention: efficient, not {wanted}: only it takes T5's position bias"
    return wanted, ""
