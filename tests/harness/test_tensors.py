"""A step's tensors on a real CPU are what the engine says: peaks, phases, saved, categories, states."""

from __future__ import annotations

from typing import Any

import pytest

from memcalc.engine.memory import step_memory
from memcalc.engine.plan import Plan
from memcalc.harness.step import TrainingStep
from memcalc.harness.watch.tensors import TensorBytes, tracked_step
from memcalc.inputs.model import ModelConfig
from tests.harness.models import GPT2, LLAMA, MIXTRAL, cpu_plan

_SETUPS: tuple[dict[str, Any], ...] = (
    {},
    {"precision": "fp32", "optimizer_impl": "fused"},
    {"precision": "bf16", "optimizer_impl": "loop"},
    {"precision": "bf16-master", "grad_clip": True},
    {"recompute": "full"},
    {"recompute": "sac", "loss": "chunked"},
    {"recompute": "selective", "attention": "eager"},
    {"grad_accum_steps": 2, "separate_labels": True},
    {"set_to_none": False, "dropout": 0.1},
    {"optimizer": "adafactor"},
    {"optimizer": "none"},
)


def _tracked(plan: Plan) -> TensorBytes:
    step = TrainingStep(plan, "cpu")
    for _ in range(2):
        step.run()
    return tracked_step(step)


_CASES = [
    *((config, setup) for config in (LLAMA, GPT2) for setup in _SETUPS),
    *((MIXTRAL, setup) for setup in ({}, {"precision": "bf16"})),
]


@pytest.mark.parametrize(
    ("config", "setup"),
    _CASES,
    ids=lambda x: "-".join(map(str, x.values())) if isinstance(x, dict) else x.name,
)
def test_a_real_step_takes_what_the_engine_says(config: ModelConfig, setup: dict[str, Any]) -> None:
    plan = cpu_plan(config, **{"precision": "bf16-mixed", **setup})
    measured, said = _tracked(plan), step_memory(plan)
    assert measured.peak == said.peak_bytes
    assert measured.peak_at == said.peak.name
    assert measured.saved == said.saved_bytes
    assert {phase: measured.phases[phase] for phase in said.phases} == said.phases
    assert measured.breakdown == said.breakdown
    assert measured.states == {
        "parameters": said.states.parameter_bytes,
        "gradients": said.states.gradient_bytes,
        "optimizer": said.states.optimizer_bytes,
        "master": said.states.master_bytes,
    }


def test_categories_sum_to_the_peak_and_events_lead_there() -> None:
    measured = _tracked(cpu_plan())
    assert sum(measured.breakdown.values()) == measured.peak
    live = best = measured.live_before
    for event in measured.events:
        live += event.nbytes if event.kind == "alloc" else -event.nbytes
        best = max(best, live)
    assert best == measured.peak and live == measured.live_before


def test_phases_are_passed_on_in_order() -> None:
    step = TrainingStep(cpu_plan(grad_accum_steps=2), "cpu")
    step.run()
    heard: list[str] = []
    tracked_step(step, heard.append)
    batch = ["forward", "loss", "backward"]
    assert heard == [*batch, *batch, "optimizer", "zero_grad"]


def test_a_longer_sequence_takes_more() -> None:
    short, longer = _tracked(cpu_plan(seq_len=32)), _tracked(cpu_plan(seq_len=64))
    assert longer.peak > short.peak and longer.saved > short.saved
    assert longer.states == short.states
