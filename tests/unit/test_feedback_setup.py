"""FeedbackSetup: defaults that follow from the training setup, and what is refused in one line."""

from __future__ import annotations

from typing import Any

import pytest

from memcalc.errors import ConfigError
from memcalc.inputs.feedback import FeedbackSetup, ResolvedFeedback, resolve_feedback
from memcalc.inputs.models import load_model
from memcalc.inputs.peft import PeftSetup
from memcalc.inputs.training import TrainingSetup, resolve

MODEL = "llama-3.2-1b"


def resolved(training: dict[str, Any] | None = None, **options: Any) -> ResolvedFeedback:
    stated = {"seq_len": 1024, "micro_batch_size": 2, **(training or {})}
    setup = resolve(TrainingSetup(**stated), load_model(MODEL))
    return resolve_feedback(FeedbackSetup(**options), setup, MODEL)


def test_ppo_has_a_critic_and_a_reward_model_of_the_policy_s_architecture() -> None:
    found = resolved(method="ppo")
    assert (found.critic, found.reward_model, found.reference) == (MODEL, MODEL, "same")
    assert (found.prompt, found.generate, found.rollout_batch, found.epochs) == (512, 512, 2, 4)


def test_grpo_generates_whole_groups() -> None:
    found = resolved({"micro_batch_size": 4}, method="grpo")
    assert (found.group, found.rollout_batch, found.epochs) == (8, 8, 1)
    assert (found.critic, found.reward_model) == (None, None)


@pytest.mark.parametrize(
    ("options", "lengths"),
    [
        ({}, (512, 512)),
        ({"generate": 24}, (1000, 24)),
        ({"prompt": 100}, (100, 924)),
        ({"prompt": 1000, "generate": 24}, (1000, 24)),
    ],
)
def test_prompt_and_response_make_the_sequence(
    options: dict[str, int], lengths: tuple[int, int]
) -> None:
    found = resolved(method="dpo", **options)
    assert (found.prompt, found.generate) == lengths


def test_adapters_are_switched_off_for_the_reference() -> None:
    assert resolved({"peft": PeftSetup(method="lora")}, method="dpo").reference == "peft"
    assert resolved({"peft": PeftSetup(method="bitfit")}, method="dpo").reference == "same"
    assert resolved(method="rm").reference == "none"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "sft"}, "rlhf: got 'sft'"),
        ({"method": "dpo", "group": 4}, "group: got it with --rlhf dpo"),
        ({"method": "grpo", "critic": "shared"}, "critic: got it with --rlhf grpo"),
        ({"method": "rm", "reference": "same"}, "reference-model: got it with --rlhf rm"),
        ({"method": "rm", "engine": "vllm"}, "engine: got it with --rlhf rm"),
        ({"method": "ppo", "sleep": 1}, "sleep: got 1 without --engine vllm"),
        ({"method": "ppo", "gpu_share": 1.5, "engine": "vllm"}, "gpu-share: got 1.5"),
        ({"method": "ppo", "sleep": 7, "engine": "vllm"}, "sleep: got 7"),
        ({"method": "ppo", "keeps_logits": True, "engine": "vllm"}, "keep-logits"),
        ({"method": "ppo", "joint_update": True, "critic": "shared"}, "joint-update"),
        ({"method": "dpo", "offload_frozen": True}, "offload-frozen"),
        ({"method": "ppo", "engine": "llama.cpp"}, "engine: got 'llama.cpp'"),
        ({"method": "ppo", "prompt": 0}, "prompt"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as raised:
        FeedbackSetup(**options)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("training", "options", "said"),
    [
        ({"micro_batch_size": 3}, {"method": "dpo"}, "nearest valid: 4"),
        ({}, {"method": "ppo", "rollout_batch": 7}, "multiple of micro-batch x grad-accum = 2"),
        ({}, {"method": "grpo", "rollout_batch": 12}, "multiple of --group 8; nearest valid: 16"),
        ({}, {"method": "dpo", "prompt": 1024}, "together --seq 1024"),
        ({}, {"method": "dpo", "prompt": 24, "generate": 24}, "together --seq 1024"),
        ({}, {"method": "dpo", "reference": "peft"}, "adapters that can be switched off"),
    ],
)
def test_what_does_not_go_with_the_training_setup_is_refused(
    training: dict[str, Any], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        resolved(training, **options)
