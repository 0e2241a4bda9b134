"""Feedback training against PyTorch running TRL's losses over transformers' models.

Parameters, saved bytes, the peak, and every allocation and release of an update or of a pass without
gradients. Under autocast the CPU casts in another order, so peaks and saved bytes are held alone.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest

from tests.oracle.support.feedback import FeedbackRun, run_feedback
from tests.oracle.support.feedback_compare import differences
from tests.oracle.support.tiny import TINY, attention_of

LLAMA = {**TINY["llama"], "num_hidden_layers": 4}
UPDATES = ("dpo", "reward", "policy", "value", "shared", "joint", "grpo")
PASSES = ("logps", "values", "score")
#: Tied heads, capped logits, biases, learned positions.
FAMILIES = ("qwen2", "gemma2", "gpt2", "olmo2")


def check(run: FeedbackRun, config: dict[str, Any] | None = None) -> None:
    found = differences(config or LLAMA, run, events=not run.autocast)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("kind", [*UPDATES, *PASSES])
def test_every_event_in_bf16(kind: str) -> None:
    check(FeedbackRun(kind))


@pytest.mark.parametrize("kind", [*UPDATES, *PASSES])
def test_every_event_in_fp32_of_other_sizes(kind: str) -> None:
    rows = 4 if kind in ("dpo", "reward") else 3
    check(FeedbackRun(kind, rows=rows, seq=70, response=30, fp32=True))


@pytest.mark.parametrize("kind", [*UPDATES, *PASSES])
def test_saved_bytes_and_peak_under_autocast(kind: str) -> None:
    check(FeedbackRun(kind, autocast=True))


@pytest.mark.parametrize("kind", ["logps", "score"])
def test_passes_of_ppo_keep_every_hidden_state(kind: str) -> None:
    check(FeedbackRun(kind, keeps_hidden=True))
    check(FeedbackRun(kind, keeps_hidden=True, autocast=True))


@pytest.mark.parametrize("kind", ["dpo", "reward", "grpo", "joint"])
def test_recomputed_blocks(kind: str) -> None:
    check(FeedbackRun(kind, checkpoint=True))


@pytest.mark.parametrize("kind", ["reward", "policy", "value", "joint", "grpo", "logps", "score"])
def test_lora(kind: str) -> None:
    """A reward model's head trains in a copy beside the frozen one; frozen heads multiply by sequence."""
    check(FeedbackRun(kind, lora=4))


@pytest.mark.parametrize("checkpoint", [False, True])
def test_dpo_with_adapters_off_as_its_reference(checkpoint: bool) -> None:
    check(FeedbackRun("dpo", lora=4, reference="adapter", checkpoint=checkpoint))


def test_dpo_with_known_log_probabilities() -> None:
    check(FeedbackRun("dpo", reference="none"))


@pytest.mark.parametrize("rows", [1, 2])
def test_grpo_without_a_reference(rows: int) -> None:
    check(FeedbackRun("grpo", rows=rows, beta=False))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["dpo", "logps", "policy"])
def test_families(kind: str, family: str) -> None:
    check(FeedbackRun(kind, attention=attention_of(family), keeps_hidden=True), TINY[family])


@pytest.mark.parametrize("family", FAMILIES)
def test_grpo_of_families(family: str) -> None:
    check(FeedbackRun("grpo", attention=attention_of(family)), TINY[family])


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "deepseek_v2"])
@pytest.mark.parametrize("kind", ["dpo", "joint"])
def test_experts_and_latent_attention(kind: str, family: str) -> None:
    check(FeedbackRun(kind, attention=attention_of(family)), TINY[family])


def test_entropies_of_many_stretches_of_positions() -> None:
    check(FeedbackRun("grpo", rows=3, seq=200, response=150))


@functools.cache
def _peak(kind: str, **options: Any) -> int:
    return run_feedback(LLAMA, FeedbackRun(kind, **options)).peak_over_base


def test_a_reference_inside_the_loss_raises_the_peak() -> None:
    """The comparison can fail: PyTorch's own peaks differ between what the engine is told apart."""
    assert _peak("dpo") > _peak("dpo", reference="none")
    assert _peak("policy") > _peak("value")
