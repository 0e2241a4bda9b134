"""Seconds of the phases of feedback training: what they grow with, and that they are the parts' own."""

from __future__ import annotations

from typing import Any

import pytest

from memcalc.engine.estimate import estimate
from memcalc.engine.feedback.feedback import feedback
from memcalc.engine.feedback.results import FeedbackEstimate
from memcalc.inputs.feedback import FeedbackSetup
from memcalc.inputs.training import TrainingSetup

MODEL = "llama-3.2-1b"


def run(method: str = "ppo", training: dict[str, Any] | None = None, **options: Any) -> Any:
    stated = {
        "stack": "hf", "seq_len": 512, "micro_batch_size": 4, "precision": "bf16", **(training or {}),
    }  # fmt: skip
    return feedback(
        MODEL, FeedbackSetup(method=method, **options), TrainingSetup(**stated), gpu="a100-80gb"
    )


def seconds(result: FeedbackEstimate) -> dict[str, float]:
    return {row.memory.name: row.seconds or 0.0 for row in result.phases}


def test_passes_over_a_rollout_cost_updates_alone() -> None:
    once, four = seconds(run(epochs=1)), seconds(run(epochs=4))
    assert four["update policy"] == pytest.approx(4 * once["update policy"])
    assert four["rollout"] == once["rollout"]
    assert four["score critic"] == once["score critic"]


def test_larger_rollouts_score_and_update_more_and_generate_better() -> None:
    small, large = run(rollout_batch=4), run(rollout_batch=32)
    for name in ("score reference", "update critic"):
        assert seconds(large)[name] == pytest.approx(8 * seconds(small)[name])
    assert seconds(large)["rollout"] < 8 * seconds(small)["rollout"]
    assert large.estimate.time.samples_per_s > small.estimate.time.samples_per_s


def test_a_token_costs_about_as_much_as_reading_the_weights_at_least() -> None:
    """255 steps over 2.47 GB of weights at 2.04 TB/s, the first token from the prompt's pass."""
    rollout = seconds(run())["rollout"]
    assert rollout > 255 * 2.47e9 / 2.04e12


def test_an_update_of_a_reward_model_costs_a_training_step_without_its_head() -> None:
    plain = estimate(
        MODEL,
        TrainingSetup(stack="hf", seq_len=512, micro_batch_size=4, precision="bf16"),
        gpu="a100-80gb",
    ).time.step_s
    found = seconds(run("rm"))["update policy"]
    assert plain is not None and 0.6 * plain < found < plain


def test_dpo_s_reference_is_priced_inside_its_step() -> None:
    """A forward pass more than where its log-probabilities are known: about a third of the rest."""
    known = seconds(run("dpo", reference="none"))["update policy"]
    inside = seconds(run("dpo"))["update policy"]
    assert 1.15 * known < inside < 1.45 * known


def test_offloaded_models_come_over_pcie() -> None:
    here, away = seconds(run()), seconds(run(offload_frozen=True))
    link = 31.5e9  # PCIe 4.0 x16 at its best
    assert away["score reference"] - here["score reference"] > 2.47e9 / link
    assert away["score critic"] == here["score critic"]


def test_no_times_without_a_gpu() -> None:
    setup = TrainingSetup(stack="hf", seq_len=512, micro_batch_size=4, precision="bf16")
    result = feedback(MODEL, FeedbackSetup(method="ppo"), setup)
    assert result.estimate.time.step_s is None
    assert all(row.seconds is None for row in result.phases)
