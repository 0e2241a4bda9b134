"""memcalc estimate --stack megatron: experts on the command line, what is assumed, what is refused."""

from __future__ import annotations

import pytest

_MIXTRAL = ("estimate", "mixtral-8x7b", "--stack", "megatron", "--gpus", "8", "--ep", "8")


def test_mixtral_on_eight_gpus_does_not_fit_and_says_why(memcalc) -> None:  # type: ignore[no-untyped-def]
    outcome = memcalc(*_MIXTRAL, "--gpu", "h100-80gb")
    assert outcome.status == 3
    assert "8 GPUs: dp 8, ep 8" in outcome.out
    assert "does not fit" in outcome.out and "expert_gate_up" in outcome.out
    assert "divide the model over more GPUs" in " ".join(outcome.out.split())
    assert "experts: every rank's receive as many token rows (--imbalance 1)" in outcome.err


def test_imbalance_and_capacity_are_said(memcalc) -> None:  # type: ignore[no-untyped-def]
    outcome = memcalc(*_MIXTRAL, "--imbalance", "1.5", "--capacity-factor", "1.25")
    assert "receive 1.5 times the mean of token rows; an expert takes 1.25 times" in outcome.err
    padded = memcalc(*_MIXTRAL, "--capacity-factor", "2", "--pad-to-capacity", "--json")
    assert padded.json["setup"]["dims"]["R"] == 2048 * 2 * 2


def test_the_advice_names_what_experts_can_recompute(memcalc) -> None:  # type: ignore[no-untyped-def]
    """DeepSeek-V3 on 2048 GPUs: up-projections alone are too little, all layers are enough."""
    words = ("--gpus", "2048", "--pp", "16", "--ep", "64", "--zero", "1", "--seq", "4096")
    stages = "--stage-layers", ",".join(["4"] * 15 + ["1"])
    outcome = memcalc("estimate", "deepseek-v3", "--stack", "megatron", *words, *stages,
                      "--grad-accum", "16", "--loss", "fused", "--gpu", "h100-80gb",
                      "--recompute", "selective", "--recompute-modules", "mla_up_proj")  # fmt: skip
    assert outcome.status == 3
    assert "--recompute full" in outcome.out


def test_modules_to_recompute_are_said(memcalc) -> None:  # type: ignore[no-untyped-def]
    words = ("--recompute", "selective", "--recompute-modules", "moe_act,layernorm")
    outcome = memcalc(*_MIXTRAL, *words)
    assert "selective of moe_act + layernorm" in " ".join(outcome.out.split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--ep", "3"), "valid: 1, 2, 4, 8"),
        (("--tp", "2"), "valid: --etp 1"),
        (("--etp", "3"), "divides an expert's width 14336"),
        (("--tp", "8", "--ep", "1", "--no-sp"), "valid: --sp"),
        (
            ("--gpus", "16", "--tp", "16", "--ep", "1"),
            "8 key/value heads of mixtral-8x7b; valid: 1, 2, 4, 8",
        ),
        (("--zero", "2"), "valid: 0, 1 (distributed optimizer)"),
        (("--pad-to-capacity",), "rule: beside one"),
        (("--recompute", "full", "--recompute-modules", "moe"), "rule: recompute selective"),
        (("--recompute", "selective", "--recompute-modules", "attn"), "nearest: core_attn"),
    ],
)
def test_errors_name_what_is_valid(memcalc, words, said) -> None:  # type: ignore[no-untyped-def]
    outcome = memcalc(*_MIXTRAL, *words)
    assert outcome.status == 2
    assert said in outcome.error
