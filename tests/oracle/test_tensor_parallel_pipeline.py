"""Stages whose layers are split: the engine's rank against PyTorch's schedules over DTensor, difference 0.

With sequence parallelism stages send a rank's part of the stream.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from memcalc.engine.make_plan import plan_of
from memcalc.engine.parallel.pipeline.pipeline import stage_of
from memcalc.engine.parallel.pipeline.pipeline_memory import stage_memory
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.training import TrainingSetup
from tests.harness.models import LLAMA
from tests.oracle.support.pipeline import run_stage

CASES: dict[str, dict[str, Any]] = {
    "1f1b": {"tp": 2, "precision": "bf16-mixed", "rank": 1},
    "gpipe": {"tp": 2, "sp": True, "precision": "bf16", "rank": 0},
    "interleaved": {"tp": 2, "sp": True, "precision": "bf16-mixed", "rank": 0, "vpp": 2},
}


@pytest.mark.parametrize("schedule", CASES)
def test_a_stage_of_split_layers_needs_what_pytorchs_takes(schedule: str) -> None:
    stated = dict(CASES[schedule])
    precision, rank = stated.pop("precision"), stated.pop("rank")
    layers = 4 if "vpp" in stated else 2
    setup = TrainingSetup(seq_len=16, micro_batch_size=2, grad_accum_steps=2, precision=precision)
    layout = ParallelPlan(pp=2, schedule=schedule, **stated)
    config = replace(LLAMA, num_hidden_layers=layers)
    plan = plan_of(config, setup, {"watched": True}, layout)
    ours, theirs = stage_memory(stage_of(plan, rank)), run_stage(plan, rank)[0]
    found = {name: size for name, size in theirs.phases.items() if name != "zero_grad"}
    assert ours.phases == found
    if schedule != "interleaved":  # counted at different moments there (test_pipeline.py)
        assert ours.saved_bytes == theirs.saved
    assert ours.states.gradient_bytes == theirs.states["gradients"]
    assert ours.states.optimizer_bytes == theirs.states["optimizer"]
