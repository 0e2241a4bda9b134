"""The ledger's rows add up to the estimate's figures."""

from __future__ import annotations

import pytest

from memcalc import TrainingSetup, estimate, explain

SETUPS = [
    TrainingSetup(seq_len=512),
    TrainingSetup(seq_len=512, precision="bf16", recompute="sac"),
    TrainingSetup(seq_len=512, precision="fp32", attention="eager"),
    TrainingSetup(seq_len=300, recompute="full", recompute_layers=3, micro_batch_size=2),
    TrainingSetup(seq_len=256, stack="hf", precision="bf16"),
]
MODELS = ["llama-3.2-1b", "gpt2", "gemma-2-2b", "mixtral-8x7b", "deepseek-v2-lite", "gpt-oss-20b"]


@pytest.mark.parametrize("setup", SETUPS, ids=lambda s: f"{s.stack}-{s.precision}-{s.recompute}")
@pytest.mark.parametrize("model", MODELS)
def test_totals_equal_the_estimate(model: str, setup: TrainingSetup) -> None:
    totals = {total.name: total.value for total in explain(model, setup).totals}
    result = estimate(model, setup, allocator=False)
    assert totals["parameters"] == result.model.parameters
    assert totals["saved for backward"] == result.memory.saved_for_backward_bytes
    flops = totals["forward FLOPs"] + totals["dgrad FLOPs"] + totals["wgrad FLOPs"]
    if setup.recompute == "full":
        assert flops < result.time.executed_flops
    else:  # sac keeps every product, so nothing that counts runs twice
        assert flops == result.time.executed_flops


def test_a_row_names_whose_gradient_needs_each_kept_tensor() -> None:
    rows = {row.op: row for row in explain("llama-3.1-8b", TrainingSetup(precision="bf16")).rows}
    assert {kept.needed_by for kept in rows["q_proj"].kept} == {"wgrad"}
    assert {kept.needed_by for kept in rows["attention"].kept} <= {"dgrad", "both"}
    assert rows["q_proj"].params.formula == "a d h"
    assert rows["q_proj"].flops["forward"].formula == "2 s a d h"
    assert rows["attn_residual"].saved.value == 0
    assert rows["q_proj"].layers == 32


def test_numbers_put_into_a_formula_give_the_value() -> None:
    for total in explain("llama-3.2-1b", TrainingSetup(micro_batch_size=3, seq_len=128)).totals:
        text = total.numbers.replace(" x ", " * ").replace(",", "").split(" (first")[0]
        assert eval(text) == total.value


def test_an_explanation_becomes_json() -> None:
    import json

    text = json.dumps(explain("gpt2", TrainingSetup(seq_len=64)).to_dict())
    assert json.loads(text)["schema"] == 1


def test_a_micro_program_says_what_lives_when() -> None:
    setup = TrainingSetup(precision="bf16", seq_len=64, micro_batch_size=2)
    rows = {row.op: row for row in explain("llama-3.1-8b", setup).rows}
    assert rows["o_proj"].programs["forward"][0] == "+mm:2 b s h"
    assert rows["down_proj"].programs["backward"][:2] == ("+mm:2 h f", "+mm:2 b s f")
    hand = explain("llama-3.1-8b", setup, {"norm": "hand"}).rows
    program = next(row for row in hand if row.op == "mlp_norm").programs["forward"]
    assert program[:2] == ("+_to_copy:4 b s h", "+pow.Tensor_Scalar:4 b s h")
    assert "-pow.Tensor_Scalar" in program
