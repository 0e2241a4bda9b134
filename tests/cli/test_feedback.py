"""memcalc estimate --rlhf: text, JSON, exit statuses, errors in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.cli.conftest import Outcome

BASE = ("estimate", "llama-3.2-1b", "--gpu", "h100-80gb", "--seq", "512", "--micro-batch", "2",
        "--precision", "bf16")  # fmt: skip


def test_ppo_as_text(memcalc: Callable[..., Outcome]) -> None:
    ran = memcalc(*BASE, "--rlhf", "ppo")
    assert ran.status == 0
    for word in (
        "policy",
        "critic",
        "reference",
        "reward",
        "rollout",
        "update critic",
        "fits: needs",
    ):
        assert word in ran.out
    assert "sum of states: 23.02 GiB" in ran.out
    assert all(len(line) <= 80 for line in ran.out.splitlines())
    assert "as TRL 1.0.0 writes them" in ran.err


def test_grpo_with_an_engine_as_json(memcalc: Callable[..., Outcome]) -> None:
    ran = memcalc(
        *BASE, "--rlhf", "grpo", "--engine", "vllm", "--sleep", "1", "--peft", "lora", "--json"
    )
    found: dict[str, Any] = json.loads(ran.out)
    feedback = found["feedback"]
    assert [phase["phase"] for phase in feedback["phases"]] == [
        "sync weights", "rollout", "score policy", "score reference", "update policy",
    ]  # fmt: skip
    assert [model["role"] for model in feedback["models"]] == ["trained", "shared", "engine"]
    memory = found["memory"]
    assert sum(memory["breakdown"].values()) == memory["peak_allocated_bytes"]
    assert memory["peak_requested_bytes"] == max(
        phase["peak_requested_bytes"] for phase in feedback["phases"]
    )
    assert found["setup"]["stack"] == "hf" and found["setup"]["rlhf"] == "grpo"
    assert found["fits"] is True and feedback["settings"]["sleep"] == 1


def test_the_stack_and_models_can_be_stated(memcalc: Callable[..., Outcome]) -> None:
    ran = memcalc(*BASE, "--rlhf", "ppo", "--stack", "torch", "--critic", "shared", "--generate", "64",
                  "--reward-model", "llama-3.2-3b", "--frozen-dtype", "bf16", "--json")  # fmt: skip
    found = json.loads(ran.out)
    assert found["setup"]["stack"] == "torch"
    assert (found["feedback"]["settings"]["prompt"], found["feedback"]["settings"]["generate"]) == (
        448,
        64,
    )


def test_what_does_not_fit_exits_with_3(memcalc: Callable[..., Outcome]) -> None:
    ran = memcalc("estimate", "llama-3.1-8b", "--gpu", "h100-80gb", "--rlhf", "ppo")
    assert ran.status == 3 and "does not fit" in ran.out


def test_one_line_in_quiet(memcalc: Callable[..., Outcome]) -> None:
    ran = memcalc(*BASE, "--rlhf", "dpo", "--quiet")
    assert len(ran.out.splitlines()) == 1 and "verdict fits" in ran.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--rlhf", "sft"), "rlhf"),
        (("--group", "8"), "--group: got it without --rlhf"),
        (("--engine", "vllm"), "--engine: got it without --rlhf"),
        (("--rlhf", "dpo", "--micro-batch", "3"), "nearest valid: 4"),
        (("--rlhf", "grpo", "--gpus", "8", "--fsdp"), "not in this version"),
        (("--rlhf", "ppo", "--timeline", "x.csv"), "--timeline"),
        (("--rlhf", "ppo", "--phase", "load"), "--phase"),
        (("--rlhf", "ppo", "--reward-model", "no-such-model"), "no-such-model"),
    ],
)
def test_errors_are_one_line(
    memcalc: Callable[..., Outcome], words: tuple[str, ...], said: str
) -> None:
    ran = memcalc(*BASE, *words)
    assert ran.status == 2 and not ran.out
    assert len(ran.err.splitlines()) == 1 and said in ran.err
