"""Which modules transformers quantises, and their bytes, on the meta device against the engine's leaves."""

from __future__ import annotations

import tomllib
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers.quantizers.base import HfQuantizer

from memcalc.engine.make_plan import plan_of
from memcalc.engine.quantised import Weights, weights_of_plan
from memcalc.inputs.hf import model_from_config
from memcalc.inputs.profiles import profile_names, profiles_dir
from memcalc.inputs.training import TrainingSetup
from memcalc.inputs.weights import load_weights

bnb = pytest.importorskip(
    "bitsandbytes", reason="bitsandbytes is not installed; pip install memcalc[test]"
)
#: Layers built of each model: a pattern of sparse or windowed layers shows in eight.
LAYERS = {"num_hidden_layers": 8, "n_layer": 8, "num_layers": 4, "num_decoder_layers": 4}
#: Families that are no decoders.
_CLASSES = {
    "bert": transformers.AutoModelForMaskedLM,
    **dict.fromkeys(("t5", "mt5"), transformers.AutoModelForSeq2SeqLM),
}
#: Families without a linear that transformers' fp8 swaps.
_NO_FP8 = {
    "gpt2": "Conv1D is left alone",
    "openai-gpt": "Conv1D is left alone",
    "falcon": "its linears are a class of their own",
    "gpt_oss": "experts with biases are refused",
}


@cache
def one_of_each_family() -> dict[str, dict[str, Any]]:
    """The smallest profile of each family that transformers has a class for, cut to few layers."""
    found: dict[str, tuple[int, dict[str, Any]]] = {}
    for name in profile_names("models"):
        raw = tomllib.loads((profiles_dir() / "models" / f"{name}.toml").read_text())
        config = {**raw.get("config", {}), **dict.fromkeys(raw.get("nulls", []))}
        kind = config.get("model_type")
        if kind not in transformers.CONFIG_MAPPING:
            continue
        key = (raw["parameters"], config)
        if kind not in found or raw["parameters"] < found[kind][0]:
            found[kind] = key
    return {kind: config for kind, (_, config) in sorted(found.items())}


def cut(config: dict[str, Any]) -> dict[str, Any]:
    short = {**config, **{key: n for key, n in LAYERS.items() if key in config}}
    if "layer_types" in short and short["layer_types"]:
        short["layer_types"] = short["layer_types"][:8]
    return short


def on_meta(config: dict[str, Any]) -> nn.Module:
    options = {key: value for key, value in config.items() if key != "model_type"}
    made = transformers.CONFIG_MAPPING[config["model_type"]](**options)
    made.dtype = None
    found = _CLASSES.get(config["model_type"], transformers.AutoModelForCausalLM)
    with torch.device("meta"):
        model = found.from_config(made, dtype=torch.bfloat16)
        if config["model_type"] in ("t5", "mt5") and config.get("tie_word_embeddings") is False:
            # from_config ties what from_pretrained leaves apart where a checkpoint holds both
            model.lm_head.weight = nn.Parameter(torch.empty_like(model.shared.weight))
    return model


def left_alone(model: nn.Module) -> list[str]:
    return HfQuantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)


def weights(config: dict[str, Any], fmt: str) -> Weights:
    setup = TrainingSetup(seq_len=16, stack="hf", precision="bf16")
    return weights_of_plan(plan_of(model_from_config(config, "m"), setup), load_weights(fmt))


@pytest.mark.parametrize("kind", one_of_each_family())
@pytest.mark.parametrize("fmt", ["nf4", "int8"])
def test_bitsandbytes_takes_the_linears_that_transformers_swaps(kind, fmt):
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear

    if kind == "falcon":
        pytest.skip("transformers 5.23 swaps no linear of Falcon, a class of their own; 4.x did")
    config = cut(one_of_each_family()[kind])
    model = on_meta(config)
    total = sum(p.numel() for p in model.parameters())
    chosen = transformers.BitsAndBytesConfig(
        load_in_4bit=fmt == "nf4", load_in_8bit=fmt == "int8", bnb_4bit_use_double_quant=True
    )
    replace_with_bnb_linear(model, left_alone(model), chosen)
    swapped = bnb.nn.Linear4bit if fmt == "nf4" else bnb.nn.Linear8bitLt
    modules = [m for m in model.modules() if isinstance(m, swapped)]
    ours = weights(config, fmt)
    assert ours.parameters == total
    assert ours.quantised_parameters == sum(m.in_features * m.out_features for m in modules)
    assert sum(held.packing == fmt for held in ours.leaves) == len(modules)


@pytest.mark.parametrize("kind", one_of_each_family())
@pytest.mark.parametrize(("fmt", "block"), [("fp8", None), ("fp8-block", (128, 128))])
def test_fp8_takes_the_bytes_of_transformers_own_modules(kind, fmt, block):
    from transformers.integrations.finegrained_fp8 import replace_with_fp8_linear

    if kind in _NO_FP8:
        pytest.skip(_NO_FP8[kind])
    config = cut(one_of_each_family()[kind])
    model = on_meta(config)
    chosen = transformers.FineGrainedFP8Config(weight_block_size=block)
    torch.set_default_dtype(torch.bfloat16)  # as from_pretrained has it
    try:
        replace_with_fp8_linear(model, left_alone(model), chosen)
    finally:
        torch.set_default_dtype(torch.float32)
    assert weights(config, fmt).resident_bytes == sum(p.nbytes for p in model.parameters())


def test_mxfp4_takes_the_bytes_of_transformers_own_experts():
    from transformers.integrations.mxfp4 import Mxfp4GptOssExperts

    config = cut(one_of_each_family()["gpt_oss"])
    with torch.device("meta"):
        experts = Mxfp4GptOssExperts(on_meta(config).config)
    own = sum(p.nbytes for p in experts.parameters()) * config["num_hidden_layers"]
    held = weights(config, "mxfp4").leaves
    scales = sum(size for each in held for name, size in each.tensors if name == "scales")
    ours = sum(h.resident_bytes for h in held if h.role.startswith("expert"))
    assert ours - scales == own, "the library keeps scales beside its parameters"
    assert scales * 16 == sum(s for each in held for name, s in each.tensors if name == "blocks")
