"""A traced micro-batch ends with what a training loop keeps: the gradients, and nothing else."""

from __future__ import annotations

import pytest

from memcalc import TrainingSetup, load_model
from memcalc.engine.make_plan import plan_of


@pytest.mark.parametrize("stack", ["torch", "hf"])
@pytest.mark.parametrize("recompute", ["none", "selective", "sac", "full"])
@pytest.mark.parametrize("model", ["gpt2", "llama-3.2-1b", "gemma-2-2b", "deepseek-v2-lite"])
def test_only_gradients_outlive_a_micro_batch(model: str, recompute: str, stack: str) -> None:
    setup = TrainingSetup(seq_len=64, precision="bf16", recompute=recompute, stack=stack)
    plan = plan_of(load_model(model), setup)
    for has_gradients in (False, True):
        structure, _ = plan.structure(has_gradients)
        made = {event for event in structure.events if event >= 0}
        alive = made - {~event for event in structure.events if event < 0}
        assert alive == structure.gradients
        assert bool(alive) is not has_gradients
