"""Profiles and importer against transformers itself: parameter counts and defaults, on meta.

Every profile whose model_type has a class is built on the meta device and counted. Each
configuration, saved again by transformers with all its defaults, must read as the same ModelConfig;
the importer's own defaults must be those of the classes.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from functools import cache
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from memcalc.inputs.hf import FAMILIES, model_from_config  # noqa: E402
from memcalc.inputs.model_toml import model_from_profile  # noqa: E402
from memcalc.inputs.profiles import profile_names, profiles_dir  # noqa: E402

#: Read as llama for counting: the same shapes, q, k and v in one tensor.
AS_LLAMA = {"baichuan"}
#: transformers 5 writes tie_word_embeddings = true whatever the head is.
T5S = {"t5", "mt5"}
AUTO = {
    "bert": transformers.AutoModelForMaskedLM,
    **dict.fromkeys(T5S, transformers.AutoModelForSeq2SeqLM),
}


@cache
def profiles() -> dict[str, dict[str, Any]]:
    folder = profiles_dir() / "models"
    return {n: tomllib.loads((folder / f"{n}.toml").read_text()) for n in profile_names("models")}


def config_of(name: str) -> tuple[str, dict[str, Any]] | None:
    profile = profiles()[name]
    config = {**profile.get("config", {}), **dict.fromkeys(profile.get("nulls", []))}
    kind = config.pop("model_type", "")
    if kind in AS_LLAMA:
        config.pop("model_max_length", None)
        kind = "llama"
    return (kind, config) if kind in transformers.CONFIG_MAPPING else None


def with_class() -> list[str]:
    return [name for name in profiles() if config_of(name)]


def same_but_notes(a: Any, b: Any) -> None:
    plain = {"notes": (), "dtype": "float32", "name": "m"}
    assert dataclasses.replace(a, **plain) == dataclasses.replace(b, **plain)


@pytest.mark.parametrize("name", with_class())
def test_profile_count_is_that_of_the_class(name: str) -> None:
    found = config_of(name)
    assert found is not None
    config = transformers.CONFIG_MAPPING[found[0]](**found[1])
    config.dtype = None
    with torch.device("meta"):
        model = AUTO.get(found[0], transformers.AutoModelForCausalLM).from_config(config)
        if found[1].get("tie_word_embeddings") is False and found[0] in T5S:
            # from_config ties what from_pretrained leaves apart where a checkpoint holds both
            model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.shared.weight))
    assert sum(p.numel() for p in model.parameters()) == profiles()[name]["parameters"]


@pytest.mark.parametrize("name", [n for n in with_class() if not n.startswith("baichuan")])
def test_config_saved_again_reads_the_same(name: str) -> None:
    found = config_of(name)
    assert found is not None
    saved = transformers.CONFIG_MAPPING[found[0]](**found[1]).to_json_string(use_diff=False)
    read, stated = model_from_config(json.loads(saved), "m"), model_from_profile(profiles()[name])
    if found[0] in T5S:
        read = dataclasses.replace(read, tie_word_embeddings=stated.tie_word_embeddings)
    same_but_notes(read, stated)
    assert not [note for note in read.notes if "not used" in note]


#: The sizes an importer requires of each family, kept when the rest is left to defaults.
SIZES = {
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "n_embd", "n_layer", "n_head", "ffn_dim", "num_experts_per_tok", "model_type", "d_model", "d_ff",
    "num_layers", "num_heads",
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(set(FAMILIES) & set(transformers.CONFIG_MAPPING)))
def test_defaults_are_those_of_the_class(kind: str) -> None:
    if kind == "gemma3":
        pytest.skip("its text_config is gemma3_text")
    full = json.loads(transformers.CONFIG_MAPPING[kind]().to_json_string(use_diff=False))
    if kind == "deepseek_v2":
        full["num_experts_per_tok"] = 6
    sizes = {key: value for key, value in full.items() if key in SIZES}
    same_but_notes(model_from_config(sizes, "m"), model_from_config(full, "m"))
