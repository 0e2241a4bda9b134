"""A row's model: built from its dimensions like the profile of the same model, or found by name."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from memcalc.accuracy.models import model_of
from memcalc.accuracy.notes import NotExpressedError
from memcalc.inputs.models import load_model
from tests.unit.accuracy_rows import row

#: Profile and the family a row calls it.
_SAME = [
    ("llama-3.1-8b", "llama", {}), ("llama-3.2-1b", "llama", {}), ("qwen2.5-7b", "qwen2", {}),
    ("gpt2", "gpt2", {"seq": 1024}), ("qwen3-30b-a3b", "qwen3_moe", {}),
    ("mixtral-8x7b", "mixtral", {}), ("gpt-oss-20b", "gpt_oss", {}), ("bloom-7b1", "bloom", {}),
    ("pythia-1b", "gpt_neox", {}), ("olmo-2-7b", "olmo2", {}),
    ("deepseek-v3", "deepseek_v3",
     {"mla": "kv_lora_rank=512;q_lora_rank=1536;qk_rope=64;qk_nope=128;v=128",
      "num_key_value_heads": 128, "head_dim": None, "shared_experts": 1, "first_dense_layers": 3}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "family", "more"), _SAME)
def test_dimensions_build_the_profiles_own_model(name: str, family: str, more: dict) -> None:  # type: ignore[type-arg]
    profile = load_model(name)
    dims = {
        key: getattr(profile, key)
        for key in ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads",
                    "num_key_value_heads", "head_dim", "vocab_size")
    }  # fmt: skip
    if profile.moe is not None:
        dims["num_experts"] = profile.moe.num_experts
        dims["experts_per_token"] = profile.moe.num_experts_per_tok
        dims["moe_intermediate_size"] = profile.moe.moe_intermediate_size
    stated = {**dims, "model": name, "family": family, "tied": profile.tie_word_embeddings, **more}
    built, _ = model_of(row(**stated))
    same = {
        key: getattr(profile, key)
        for key in ("max_position_embeddings", "num_position_rows", "notes", "dtype")
    }
    moe = profile.moe
    if moe is not None and built.moe is not None:  # not a column: how experts are chosen
        chosen = {key: getattr(moe, key) for key in ("normalize_top_k", "expert_groups")}
        built = replace(built, moe=replace(built.moe, **chosen))
    assert replace(built, **same) == profile


def test_a_name_alone_means_a_profile_padded_or_untied_on_request() -> None:
    config, assumed = model_of(row(model="llama-3.2-1b", vocab_size=128512, tied="false"))
    base = load_model("llama-3.2-1b")
    assert config == replace(base, vocab_size=128512, tie_word_embeddings=False) and not assumed


def test_families_without_a_code_of_their_own_say_what_stands_in() -> None:
    dims = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "vocab_size": 99,
            "num_hidden_layers": 2}  # fmt: skip
    qwen, said = model_of(row(family="qwen", **dims))
    assert qwen.attention_bias and not qwen.attention_output_bias
    assert said == ["Qwen-1 priced with the code of Qwen2"]
    mpt, said = model_of(row(family="mpt", **dims))
    assert (mpt.residual_dropout, mpt.position_embedding, mpt.mlp_bias) == (0.0, "learned", True)
    assert mpt.num_position_rows == 128 and not said
    _, said = model_of(row(**dims))
    assert said == ["family not stated: llama's block"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model": "lama-3.1-8b"}, "nearest: llama-3.1-8b"),
        ({"model": None}, "neither a model's name nor its dimensions"),
        ({"hidden_size": 64}, "num_attention_heads is not stated"),
        ({"family": "t5"}, "family 't5' is not one this version builds"),
        ({"head_dim": 30}, "head_dim 30 with family gpt2, which has 16"),
        ({"mlp": "swiglu"}, "mlp swiglu with family gpt2, which has gelu"),
        ({"position": "rope"}, "position rope with family gpt2, which has learned"),
        ({"num_attention_heads": 7}, "divides hidden_size = 64"),
    ],
)
def test_a_model_that_cannot_be_built_says_why(changed: dict[str, object], said: str) -> None:
    dims: dict[str, object] = {}
    if not {"model", "hidden_size"} & set(changed):
        dims = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4,
                "vocab_size": 99, "family": "gpt2"}  # fmt: skip
    with pytest.raises(NotExpressedError, match=re.escape(said)):
        model_of(row(**{**dims, **changed}))
