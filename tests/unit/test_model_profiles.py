"""Every shipped model profile loads, is reachable by its names and says where it comes from."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from memcalc.errors import ConfigError
from memcalc.inputs.model_toml import model_from_profile
from memcalc.inputs.models import load_model
from memcalc.inputs.profiles import normal_name, profile_names, profiles_dir

NAMES = profile_names("models")


def profile(name: str) -> dict[str, Any]:
    return tomllib.loads((profiles_dir() / "models" / f"{name}.toml").read_text("utf-8"))


@pytest.mark.parametrize("name", NAMES)
def test_profile_loads_and_states_its_sources(name: str) -> None:
    content = profile(name)
    model = load_model(name)
    assert model.name == content["name"] == name == normal_name(name)
    assert len(content["source"]) > 20 and len(content["parameters_source"]) > 20
    count, digits = content.get("parameters"), content.get("published_parameters")
    assert type(count) is int or isinstance(digits, str)
    assert not [note for note in model.notes if "not used" in note]
    known = {"name", "aliases", "source", "parameters", "published_parameters"}
    known |= {"parameters_source", "notes", "nulls", "config", "model"}
    assert set(content) <= known


def test_names_and_aliases_are_unique() -> None:
    seen: dict[str, str] = {}
    for name in NAMES:
        for alias in (name, *profile(name)["aliases"]):
            assert seen.setdefault(normal_name(alias), name) == name, alias
            if alias != name:
                assert normal_name(alias) not in NAMES


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("meta-llama/Llama-3.1-8B", "llama-3.1-8b"),
        ("Qwen/Qwen2.5-7B-Instruct", "qwen2.5-7b"),
        ("LLAMA-2-7B", "llama-2-7b"),
        ("alpaca", "llama-7b"),
        ("lmsys/vicuna-13b-v1.3", "llama-13b"),
        ("BelleGroup/BELLE-7B-2M", "bloom-7b1"),
        ("deepseek-ai/DeepSeek-R1", "deepseek-v3"),
        ("THUDM/chatglm-6b", "chatglm-6b"),
        ("openai-community/gpt2", "gpt2"),
    ],
)
def test_aliases_reach_their_profile(alias: str, name: str) -> None:
    assert load_model(alias).name == name


def test_shapes_of_the_models_published_only_as_papers() -> None:
    gpt3, palm = load_model("gpt-3-175b"), load_model("palm-540b")
    assert (gpt3.num_hidden_layers, gpt3.num_attention_heads, gpt3.head_dim) == (96, 96, 128)
    assert palm.num_key_value_heads == 1 and palm.parallel_block and palm.tie_word_embeddings
    assert load_model("mt-nlg-530b").num_hidden_layers == 105
    assert not palm.norm_bias
    assert load_model("chinchilla-70b").position_embedding == "relative"


def test_published_nulls_reach_the_importer() -> None:
    assert load_model("mistral-7b-v0.3").sliding_window is None
    assert load_model("mistral-7b-v0.1").sliding_window == 4096
    lite = load_model("deepseek-v2-lite")
    assert lite.mla is not None and lite.mla.q_lora_rank is None


FIELDS = {
    "vocab_size": 100, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4,
    "max_position_embeddings": 64,
}  # fmt: skip


def test_model_table_holds_fields_and_sub_structures() -> None:
    moe = {
        "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "sparse_layers": [1]
    }  # fmt: skip
    mla = {"kv_lora_rank": 4, "qk_nope_head_dim": 4, "qk_rope_head_dim": 2, "v_head_dim": 4}
    table = {**FIELDS, "moe": moe, "mla": mla, "notes": ["b"]}
    model = model_from_profile({"name": "x", "model": table, "notes": ["a"]})
    assert model.is_sparse(1) and not model.is_sparse(0) and model.mla is not None
    assert model.notes == ("a", "b")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({}, "names its model"),
        ({"name": "x"}, "one table"),
        ({"name": "x", "config": {}, "model": {}}, "one table"),
        ({"name": "x", "config": {}}, "model_type: missing"),
        ({"name": "x", "config": {}, "nulls": "a"}, "list of strings"),
        ({"name": "x", "model": {}}, "missing"),
        ({"name": "x", "model": {**FIELDS, "wobble": 1}}, "wobble"),
        ({"name": "x", "model": {**FIELDS, "moe": {"num_experts": 2}}}, "num_experts_per_tok"),
        ({"name": "x", "model": {**FIELDS, "moe": 3}}, "moe"),
        ({"name": "x", "model": {**FIELDS, "hidden_size": "8"}}, "hidden_size"),
        ({"name": "x", "model": {**FIELDS, "hidden_size": True}}, "hidden_size"),
        ({"name": "x", "model": {**FIELDS, "num_hidden_layers": 10**6}}, "10000 layers"),
        ({"name": "x", "model": {**FIELDS, "layer_types": ["slidin", 3]}}, "nearest: sliding"),
        ({"name": "x", "model": {**FIELDS, "layer_types": [["a"]]}}, "layer_types"),
        ({"name": "x", "model": {**FIELDS, "layer_types": "full"}}, "rule: list"),
        (
            {"name": "x", "model": {**FIELDS, "attention_dropout": float("nan")}},
            "attention_dropout",
        ),
        ({"name": "x", "model": {**FIELDS, "norm_type": 3}}, "norm_type"),
        ({"name": "x", "model": {**FIELDS, "notes": [1]}}, "notes"),
        ({"name": "x", "model": {**FIELDS, "tie_word_embeddings": "yes"}}, "tie_word_embeddings"),
    ],
)
def test_bad_model_tables(content: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as error:
        model_from_profile(content)
    assert "\n" not in str(error.value)
