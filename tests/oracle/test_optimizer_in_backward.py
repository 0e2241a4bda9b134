"""Stepping inside backward, against PyTorch's hooks: every event of a step, peaks, states, refusals.

The harness registers a hook on each parameter (register_post_accumulate_grad_hook) that steps an
optimizer of it alone and drops the gradient; the engine puts the same on its timeline.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from memcalc.engine.make_plan import plan_of
from memcalc.engine.memory import step_memory
from memcalc.engine.program import training_program
from memcalc.errors import ConfigError
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.models import load_model
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.training import TrainingSetup
from tests.oracle.support.compare import (
    How,
    random_config,
    random_extras,
    record_of,
    said,
    step_differences,
)
from tests.oracle.support.reference import RefConfig
from tests.oracle.support.reference import plan_of as reference_plan
from tests.oracle.test_torch_events import engine_rows, torch_rows

OPTIMIZERS = [
    ("adamw", "foreach"), ("adamw", "fused"), ("adamw", "loop"), ("sgd", "foreach"),
    ("momentum", "loop"), ("adafactor", "loop"),
]  # fmt: skip


def _drawn(rng: random.Random, **fixed: Any) -> RefConfig:
    while True:
        cfg = random_config(rng, **fixed)
        if cfg.recompute != "reentrant":
            return RefConfig(**vars(cfg) | random_extras(rng, cfg))


@pytest.mark.parametrize(("optimizer", "impl"), OPTIMIZERS)
def test_every_event_is_pytorchs(optimizer: str, impl: str) -> None:
    """3 models an item: precisions, recomputation, ties and biases drawn."""
    rng = random.Random(f"in backward {optimizer} {impl}")
    how = How(optimizer=optimizer, impl=impl, in_backward=True)
    for _ in range(3):
        cfg = _drawn(rng)
        assert reference_plan(cfg, how).optimizer.in_backward
        ours, theirs = engine_rows(cfg, how), torch_rows(cfg, how)
        for number, (mine, torchs) in enumerate(zip(ours[:-1], theirs[:-1], strict=False)):
            assert mine == torchs, f"{said(cfg)}: allocation {number}"
        assert len(ours) == len(theirs), said(cfg)
        assert not step_differences(cfg, how), said(cfg)


def test_peaks_of_adafactor_over_lists_of_one() -> None:
    """Its foreach code makes scalars the engine leaves out; no peak knows them."""
    rng = random.Random("in backward adafactor")
    how = How(optimizer="adafactor", impl="foreach", in_backward=True)
    for _ in range(2):
        cfg = _drawn(rng)
        assert not step_differences(cfg, how), said(cfg)


def test_the_first_step_makes_the_states_inside_backward() -> None:
    """The bytes alive after each step of the allocator's stream are those PyTorch holds."""
    how, cfg = How(in_backward=True), RefConfig(L=4)
    plan, theirs = reference_plan(cfg, how), record_of(cfg, how)
    stream = training_program(plan, ())
    starts = [start for start, name in stream.phases if name == "micro-batch"]
    assert len(starts) == 2
    live = [0]
    for event in stream.events:
        live.append(live[-1] + (stream.sizes[event] if event >= 0 else -stream.sizes[~event]))
    assert live[starts[1]] == live[-1] == theirs.live_before


@pytest.mark.parametrize("model", ["llama-3.2-1b", "gpt2"])
def test_gradients_do_not_add_up(model: str) -> None:
    """Against a step after backward: the most is the loss or one block, not all gradients."""
    setup = {"seq_len": 512, "precision": "bf16", "recompute": "full"}
    apart = step_memory(plan_of(load_model(model), TrainingSetup(**setup)))
    inside = step_memory(
        plan_of(load_model(model), TrainingSetup(**setup, optimizer_in_backward=True))
    )
    assert inside.states.gradient_bytes == 0 < apart.states.gradient_bytes
    assert inside.states.optimizer_bytes == apart.states.optimizer_bytes
    assert inside.peak_bytes < apart.peak_bytes


def _small() -> ModelConfig:
    return load_model("llama-3.2-1b")


@pytest.mark.parametrize(
    "stated",
    [
        {"grad_clip": True}, {"grad_accum_steps": 2}, {"set_to_none": False},
        {"optimizer": "muon"}, {"precision": "bf16-master"},
        {"recompute": "full", "reentrant": True}, {"micro_batch_size": 1, "global_batch": 4},
    ],
)  # fmt: skip
def test_what_needs_all_gradients_at_once_is_refused(stated: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="optimizer_in_backward"):
        plan_of(_small(), TrainingSetup(**stated, optimizer_in_backward=True))


def test_several_gpus_are_of_a_later_version() -> None:
    setup = TrainingSetup(optimizer_in_backward=True)
    with pytest.raises(ConfigError, match="one GPU"):
        plan_of(_small(), setup, parallel=ParallelPlan(dp=2))
