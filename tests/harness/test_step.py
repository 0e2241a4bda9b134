"""Whole steps on a CPU: phases in order, the loss falls, what cannot run is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from memcalc.errors import ConfigError
from memcalc.harness.step import TrainingStep
from tests.harness.models import GPT2, LLAMA, MIXTRAL, cpu_plan

OPTIMIZERS = [
    {"optimizer": name, "optimizer_impl": impl}
    for name in ("adamw", "sgd", "momentum", "adafactor", "muon")
    for impl in ("foreach", "fused", "loop")
    if (name, impl) != ("adafactor", "fused")
]


def _losses(step: TrainingStep, count: int) -> list[float]:
    found = []
    for _ in range(count):
        loss = step.run(keep_loss=True)
        assert loss is not None
        found.append(float(loss))
    return found


@pytest.mark.parametrize("how", OPTIMIZERS, ids=lambda how: "-".join(how.values()))
def test_the_loss_falls_on_a_fixed_batch(how: dict[str, Any]) -> None:
    losses = _losses(TrainingStep(cpu_plan(**how), "cpu"), 8)
    assert losses[-1] < losses[0] - 0.01
    assert losses[0] == pytest.approx(6.2, abs=0.3)  # log(500): freshly drawn, knows nothing


@pytest.mark.parametrize("precision", ["bf16", "bf16-mixed", "bf16-master", "tf32"])
@pytest.mark.parametrize("model", [LLAMA, GPT2, MIXTRAL], ids=lambda m: m.name)
def test_it_falls_in_every_precision(model: Any, precision: str) -> None:
    losses = _losses(TrainingStep(cpu_plan(model, precision=precision), "cpu"), 8)
    assert losses[-1] < losses[0] - 0.01


def test_without_an_optimizer_nothing_is_learned() -> None:
    losses = _losses(TrainingStep(cpu_plan(optimizer="none"), "cpu"), 3)
    assert losses[0] == losses[1] == losses[2]


def test_phases_come_in_order() -> None:
    heard: list[str] = []
    step = TrainingStep(cpu_plan(grad_accum_steps=2, grad_clip=True), "cpu")
    assert step.run(heard.append) is None
    batch = ["forward", "loss", "backward"]
    assert heard == [*batch, *batch, "optimizer", "zero_grad"]


@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_are_dropped_or_zeroed(set_to_none: bool) -> None:
    step = TrainingStep(cpu_plan(set_to_none=set_to_none), "cpu")
    step.run()
    for parameter in step.model.parameters():
        if set_to_none:
            assert parameter.grad is None
        else:
            assert parameter.grad is not None and not parameter.grad.any()


def test_the_same_seed_gives_the_same_run() -> None:
    first, second = (_losses(TrainingStep(cpu_plan(), "cpu", seed=7), 2) for _ in range(2))
    other = _losses(TrainingStep(cpu_plan(), "cpu", seed=8), 2)
    assert first == second != other


@pytest.mark.parametrize(
    ("setup", "said"),
    [
        ({"optimizer": "lion"}, "optimizer: got 'lion'"),
        ({"optimizer": "adamw-8bit"}, "optimizer: got 'adamw-8bit'"),
        ({"optimizer_dtype": "bf16"}, "optimizer-dtype: got 'bf16'"),
        ({"stack": "hf"}, "stack: got 'hf'"),
    ],
)
def test_what_cannot_run_is_refused(setup: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        TrainingStep(cpu_plan(**setup), "cpu")


def test_labels_may_be_a_tensor_of_their_own() -> None:
    apart = TrainingStep(cpu_plan(separate_labels=True), "cpu")
    assert apart.labels is not apart.ids and torch.equal(apart.labels, apart.ids)
