"""Rows of adapters: the PeftSetup they state, and the reasons they have none."""

from __future__ import annotations

import pytest

from memcalc.accuracy.groups import is_promised
from memcalc.accuracy.notes import NotExpressedError
from memcalc.accuracy.pricing import THROUGHPUT, Priced, price
from memcalc.accuracy.report import report
from memcalc.accuracy.setups import express
from memcalc.inputs.peft import PeftSetup
from tests.unit.accuracy_rows import row

LORA = {"stack": "hf", "peft": "lora", "lora_rank": 16}
QWEN = {
    **LORA, "source": "Qwen-1 finetune profile", "family": "qwen", "lora_targets": "all",
    "model": None, "hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4,
    "vocab_size": 320, "recompute": "full",
}  # fmt: skip


def test_a_row_of_lora_is_taken_as_stated() -> None:
    stated = express(row(**LORA))
    assert stated.setup.peft == PeftSetup(method="lora", rank=16)
    assert stated.setup.precision == "bf16"
    assert "adapters in fp32, PEFT's default" in stated.assumed
    assert express(row(stack="hf")).setup.peft is None


def test_targets_are_all_letters_or_names() -> None:
    llama = {**LORA, "model": "llama-3.2-1b"}
    for words, targets in (
        ("all", ("all-linear",)), ("q,v", ("q_proj", "v_proj")), ("up_proj", ("up_proj",)),
    ):  # fmt: skip
        peft = express(row(**llama, lora_targets=words)).setup.peft
        assert peft is not None and peft.targets == targets


@pytest.mark.parametrize(
    ("cells", "weights"),
    [
        ({"precision": "nf4", "quantizer": "nf4"}, "nf4-plain"),
        ({"precision": "nf4", "quantizer": "nf4-dq"}, "nf4"),
        ({"precision": "nf4"}, "nf4"),
        ({"precision": "int8"}, "int8"),
    ],
)
def test_packed_weights_train_under_autocast(cells: dict[str, object], weights: str) -> None:
    setup = express(row(**{**LORA, "peft": "qlora"}, **cells)).setup
    assert setup.peft is not None and setup.peft.weights == weights
    assert setup.precision == "bf16-mixed"


def test_what_qwens_script_decides_is_filled_in_and_named() -> None:
    stated = express(row(**QWEN))
    assert stated.setup.peft == PeftSetup(
        rank=16, targets=("all-linear",), dropout=0.05, weights="bf16"
    )
    assert stated.setup.precision == "bf16-mixed" and stated.setup.grad_clip
    assert stated.config.fused_qkv and stated.config.attention_bias
    assert any("finetune.py" in said for said in stated.assumed)
    whole = express(row(**{**QWEN, "peft": "none"}))
    assert not whole.config.fused_qkv and whole.setup.precision == "bf16"


def test_qwens_loss_is_narrow_where_nothing_casts_it_and_its_script_names_a_stage() -> None:
    layout = {"stack": "deepspeed", "n_gpus": 4, "dp": 4, "gpus_per_node": 4}
    tuned = express(row(**{**QWEN, **layout}, zero=2))
    assert tuned.kernels == {"narrow_loss": True} and tuned.plan.zero == 2
    whole = express(row(**{**QWEN, **layout, "peft": "none"}))
    assert whole.kernels == {"narrow_loss": True} and whole.plan.zero == 3
    assert "ZeRO stage not stated: 3, as the source's script" in whole.assumed
    assert express(row(**QWEN)).kernels == {} and express(row(**QWEN)).plan.zero == 0
    other = express(row(**{**LORA, **layout}))
    assert other.kernels == {} and other.plan.zero == 0


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({"stack": "other:litgpt"}, "litgpt's own lora layers are not described"),
        ({"stack": "torchtune", "peft": "qlora"}, "torchtune's own qlora layers"),
        ({"stack": "other:unsloth"}, "Unsloth's own lora layers"),
        ({"stack": "megatron"}, "Megatron-Bridge's own lora layers"),
        ({"peft": "lora+emb"}, "modules_to_save"),
        ({"peft": "qlora", "precision": "int4", "quantizer": "gptq"}, "auto-gptq"),
        ({"precision": None}, "precision is not stated"),
        ({"lora_rank": None}, "lora_rank is not stated"),
        ({"peft": "lora+emb", "priceable": "no", "why_not": "lengths vary"}, "lengths vary"),
        ({"peft": "qlora", "precision": "int4"}, "rule: nf4 or int8"),
        ({"peft": "lorra"}, "lorra"),
    ],
)
def test_what_is_not_described_says_why(cells: dict[str, object], reason: str) -> None:
    with pytest.raises(NotExpressedError) as error:
        express(row(**{**LORA, **cells}))
    assert reason in str(error.value)


def test_adapters_are_a_class_of_their_own_and_promised_nothing() -> None:
    cells = {**QWEN, "gpu": "a100-80gb-sxm", "step_s": 1, "mem_kind": "unknown"}
    trusted = {**cells, "confidence": "high", "priceable": "yes"}
    priced = price([row(**trusted), row(line=3, id="two", model="gpt2", mem_gb=1)])
    assert not priced.unexpressed
    found = report(Priced(priced.pairs, [], []), "mine", {})
    assert [one["class"] for one in found["rows"]] == ["adapters", "adapters", "training"]
    assert found["adapters"]["memory"]["hf"]["n"] == 1
    assert found["adapters"]["throughput"]["hf"]["n"] == 1
    assert found["memory"]["all"]["n"] == 1 and found["throughput"] == {}
    rates = [pair for pair in priced.pairs if pair.what == THROUGHPUT]
    assert rates and not any(is_promised(pair) for pair in rates)
    assert is_promised(rates[0]._replace(row=row(**{**trusted, "peft": "none"})))
