"""Rows of parameter-efficient fine-tuning: what trains, as a PeftSetup, or why none can be stated.

What a row's own columns leave open and its source's code decides is in `OWN`, with where it is stated;
whatever neither says takes PEFT's default and is named as assumed. Scored as a class of its own.
Checked by: unit/test_accuracy_adapters.py, published/test_adapters.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final, NamedTuple

from memcalc.accuracy.columns import QUANTISED
from memcalc.accuracy.rows import Row
from memcalc.errors import ConfigError
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.peft import ADDS, DTYPES, LOW_RANK, PeftSetup
from memcalc.inputs.peft_names import ALL_LINEAR


class Own(NamedTuple):
    """What a source's script decides. precision, weights: of a row that says bf16. why: as assumed."""

    precision: str
    weights: str
    dropout: float
    why: str


#: Part of a source's name -> what its script decides. QwenLM/Qwen: finetune.py (lora_dropout 0.05, r 64,
#: c_attn, c_proj, w1 and w2, which are all linears of a block) and finetune/finetune_lora_*.sh (--bf16:
#: the Trainer's autocast over weights that are stored in bf16).
OWN: Final[Mapping[str, Own]] = {
    "Qwen-1 finetune": Own(
        "bf16-mixed", "bf16", 0.05, "finetune.py: bf16 weights under autocast, LoRA dropout 0.05"
    ),
}
#: Frameworks with LoRA layers of their own that no stack describes.
OWN_LAYERS: Final = {
    "litgpt": "litgpt", "torchtune": "torchtune", "unsloth": "Unsloth", "megatron": "Megatron-Bridge",
    "nanotron": "nanotron", "torchtitan": "torchtitan",
}  # fmt: skip
#: Words of a row for a projection -> its name in most families' code.
_PROJECTIONS: Final = {name: f"{name}_proj" for name in "qkvo"}
#: (precision, quantizer) -> the format of the frozen linears.
_PACKED: Final = {
    ("nf4", "nf4"): "nf4-plain", ("nf4", "nf4-dq"): "nf4", ("nf4", ""): "nf4", ("int8", ""): "int8",
}  # fmt: skip


def with_adapters(row: Row) -> bool:
    """Whether a row trains less than every weight."""
    return row.text("peft") not in (None, "none")


def why_not(row: Row) -> str | None:
    """The reason a row's fine-tuning is not described; None where it is, or there is none of it."""
    if not with_adapters(row):
        return None
    peft, framework = row.text("peft") or "", (row.text("stack") or "").removeprefix("other:")
    if framework in OWN_LAYERS:
        return f"{OWN_LAYERS[framework]}'s own {peft} layers are not described: PEFT's are, on stack hf"
    if row.text("priceable") == "no":
        return None  # the input its source left out is the reason
    if peft == "lora+emb":
        return (
            "lora+emb: PEFT trains whole copies of the embedding and the head beside the adapters "
            "(modules_to_save), which no setup here states"
        )
    if row.text("quantizer") == "gptq":
        return (
            f"{peft} over gptq weights: auto-gptq's training kernels, which unpack a whole matrix a "
            "product, are not described; nf4, fp4 and int8 of bitsandbytes are"
        )
    if row.text("precision") is None:
        return f"{peft}: precision is not stated, and decides the bytes of the frozen weights"
    if peft in LOW_RANK and row.whole("lora_rank") is None:
        return f"{peft}: lora_rank is not stated"
    return None


def fine_tuning(row: Row, precision: str) -> tuple[PeftSetup | None, str, list[str]]:
    """What trains, the precision it trains in, and what was assumed of either.

    precision: as the row states it. Raises ConfigError for a method or a target that is not known.
    """
    if not with_adapters(row):
        return None, precision, []
    method, _, layers = (row.text("peft") or "").partition(":")
    own = next((own for name, own in OWN.items() if name in row.source), None)
    weights, assumed = None, []
    if precision in QUANTISED:
        weights = _packing(row, precision)
        precision = "bf16-mixed"
        assumed.append("products of packed weights under autocast in bf16")
    elif own is not None and precision in DTYPES:
        precision, weights = own.precision, own.weights
    if own is not None:
        assumed.append(own.why)
    if method in ADDS and row.text("stack") != "deepspeed":  # whose engine casts them to 16 bits
        assumed.append("adapters in fp32, PEFT's default")
    setup = PeftSetup(
        method=method,
        rank=row.whole("lora_rank") if method in LOW_RANK else None,
        targets=_targets(row.text("lora_targets")),
        dropout=own.dropout if own is not None else 0.0,
        layers=int(layers) if layers.isdecimal() else None,
        weights=weights,
    )
    return setup, precision, assumed


def _packing(row: Row, precision: str) -> str:
    key = (precision, row.text("quantizer") or "")
    if key not in _PACKED:
        raise ConfigError(
            f"precision: got {' '.join(key).strip()} with {row.text('peft')}; rule: nf4 or int8 of "
            "bitsandbytes"
        )
    return _PACKED[key]


def _targets(stated: str | None) -> tuple[str, ...]:
    """Names of linears: `all`, letters of projections (`q,v`), or names as the model's code has them."""
    if stated is None:
        return ()
    if stated == "all":
        return (ALL_LINEAR,)
    return tuple(_PROJECTIONS.get(name.strip(), name.strip()) for name in stated.split(","))


def in_own_code(row: Row, config: ModelConfig) -> tuple[ModelConfig, list[str]]:
    """The model with the linears its own code has, where adapters sit on them.

    Qwen-1 projects q, k and v by one c_attn, which takes one pair of low-rank matrices: Baichuan's block,
    with a bias.
    """
    if not with_adapters(row) or row.text("family") != "qwen":
        return config, []
    fused = replace(config, model_type="baichuan", fused_qkv=True)
    return fused, ["one c_attn for q, k and v, as in Baichuan's block"]
