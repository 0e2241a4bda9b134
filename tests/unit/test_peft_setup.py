"""PeftSetup and names of linears: what is refused and how, what PEFT's names and defaults mean."""

from __future__ import annotations

import pytest

from memcalc.errors import ConfigError, NotInThisVersionError
from memcalc.inputs.models import load_model
from memcalc.inputs.peft import METHODS, VIRTUAL, PeftSetup
from memcalc.inputs.peft_names import target_linears


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"method": "lorra"}, "nearest: lora"),
        ({"rank": 0}, "lora_rank: got 0"),
        ({"dropout": 1.0}, "lora_dropout: got 1.0"),
        ({"dtype": "fp8"}, "lora_dtype: got 'fp8'"),
        ({"method": "freeze"}, "rule: freeze:N"),
        ({"virtual_tokens": 8}, "virtual_tokens: got one with peft lora"),
        ({"method": "prefix", "virtual_tokens": 0}, "virtual_tokens: got 0"),
        ({"method": "prefix", "encoder_width": 64}, "prompt_width: got one with peft prefix"),
        ({"method": "prompt", "projection": True}, "prefix_projection: got one with peft prompt"),
        ({"method": "prompt", "dtype": "bf16"}, "lora_dtype: got one with peft prompt"),
        (
            {"method": "p-tuning", "targets": ("q_proj",)},
            "lora_targets: got one with peft p-tuning",
        ),
        ({"kind": "houlsby"}, "adapter_kind: got one with peft lora"),
        ({"method": "adapter", "kind": "houlsbi"}, "nearest: houlsby"),
        ({"method": "adapter", "reduction": 0.5}, "adapter_reduction: got 0.5"),
        ({"method": "adapter", "reduction": 8, "width": 8}, "rule: one of the two"),
        ({"method": "adapter", "weights": "nf4"}, "weights: got one with peft adapter"),
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


def test_the_rank_is_pefts_own_where_none_is_stated() -> None:
    assert PeftSetup().low_rank == 8
    assert PeftSetup(method="bitfit").low_rank == 0
    assert PeftSetup(method="adalora").low_rank == 12
    assert PeftSetup(method="adalora", rank=4).low_rank == 4


def test_virtual_tokens_and_widths_have_defaults() -> None:
    tokens = {method: PeftSetup(method=method, layers=None).tokens for method in VIRTUAL}
    assert tokens == dict.fromkeys(VIRTUAL, 20) and set(VIRTUAL) < set(METHODS)
    widths = {
        kind: PeftSetup(method="adapter", kind=kind).bottleneck(4096)
        for kind in ("houlsby", "pfeiffer", "parallel")
    }
    assert widths == {"houlsby": 256, "pfeiffer": 256, "parallel": 2048}
    assert PeftSetup(method="adapter", reduction=2.5).bottleneck(768) == 307
    assert PeftSetup(method="adapter", width=48).bottleneck(768) == 48


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
        ("gpt-oss-20b", ("all-linear",), ("q_proj", "k_proj", "v_proj", "o_proj")),
        ("chatglm-6b", ("dense_h_to_4h", "dense_4h_to_h"), ("up_proj", "down_proj")),
        ("chatglm2-6b", ("dense_h_to_4h",), ("gate_up_proj",)),
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
    with pytest.raises(NotInThisVersionError, match="all-linear of opt-350m"):
        target_linears(load_model("opt-350m"), ("all-linear",))
    with pytest.raises(NotInThisVersionError, match="all-linear of mixtral"):
        target_linears(load_model("mixtral-8x7b"), ("all-linear",))
    with pytest.raises(NotInThisVersionError, match="latent attention"):
        target_linears(load_model("deepseek-v2-lite"), ())
