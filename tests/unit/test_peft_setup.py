"""PeftSetup and names of linears: what is refused and how, what PEFT's names and defaults mean."""

from __future__ import annotations

import pytest

from memcalc.errors import ConfigError, NotInThisVersionError
from memcalc.inputs.models import load_model
from memcalc.inputs.peft import LATER, METHODS, PeftSetup
from memcalc.inputs.peft_names import target_linears


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"method": "lorra"}, "nearest: lora"),
        ({"rank": 0}, "lora_rank: got 0"),
        ({"dropout": 1.0}, "lora_dropout: got 1.0"),
        ({"dtype": "fp8"}, "lora_dtype: got 'fp8'"),
        ({"method": "freeze"}, "rule: freeze:N"),
        ({"method": "freeze", "layers": 0}, "peft freeze:N"),
        ({"layers": 2}, "rule: freeze:N"),
        ({"method": "bitfit", "rank": 8}, "lora_rank: got one with peft bitfit"),
        ({"method": "bitfit", "dropout": 0.1}, "lora_dropout: got one with peft bitfit"),
        (
            {"method": "freeze", "layers": 1, "dtype": "bf16"},
            "lora_dtype: got one with peft freeze",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(fields: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        PeftSetup(**fields)  # type: ignore[arg-type]
    assert said in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("method", LATER)
def test_methods_of_later_versions_are_refused_by_name(method: str) -> None:
    with pytest.raises(NotInThisVersionError, match=f"{method} is not in this version"):
        PeftSetup(method=method)


def test_the_rank_is_pefts_own_where_none_is_stated() -> None:
    assert PeftSetup().low_rank == 8
    assert PeftSetup(method="bitfit").low_rank == 0
    assert set(LATER) < set(METHODS)


@pytest.mark.parametrize(
    ("model", "targets", "meant"),
    [
        ("llama-3.1-8b", (), ("q_proj", "v_proj")),
        ("gpt2", (), ("qkv_proj",)),
        ("gpt2", ("c_proj",), ("o_proj", "down_proj")),
        ("gpt2", ("mlp.c_proj",), ("down_proj",)),
        ("chatglm-6b", ("query_key_value",), ("qkv_proj",)),
        ("gpt-neox-20b", ("dense",), ("o_proj",)),
        ("llama-3.1-8b", ("all-linear",), (
            "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")),
        ("llama-3.1-8b", ("self_attn.q_proj", "down_proj"), ("q_proj", "down_proj")),
        ("mixtral-8x7b", (), ("q_proj", "v_proj")),
    ],
)  # fmt: skip
def test_names_mean_what_peft_takes_them_to_mean(
    model: str, targets: tuple[str, ...], meant: tuple[str, ...]
) -> None:
    assert target_linears(load_model(model), targets) == meant


def test_targets_that_a_model_has_not_are_refused() -> None:
    with pytest.raises(ConfigError, match="lora_targets: got 'c_attn'"):
        target_linears(load_model("llama-3.1-8b"), ("c_attn",))
    with pytest.raises(ConfigError, match="rule: all-linear alone"):
        target_linears(load_model("llama-3.1-8b"), ("all-linear", "q_proj"))
    with pytest.raises(ConfigError, match="no default for phi3"):
        target_linears(load_model("phi-3-mini"), ())
    with pytest.raises(NotInThisVersionError, match="all-linear of mixtral"):
        target_linears(load_model("mixtral-8x7b"), ("all-linear",))
    with pytest.raises(NotInThisVersionError, match="latent attention"):
        target_linears(load_model("deepseek-v2-lite"), ())
