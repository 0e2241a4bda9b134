"""Real steps on a CUDA device: tensors to the byte, the allocator within the estimate's band."""

from __future__ import annotations

from typing import Any

import pytest

from memcalc.engine.estimate import estimate
from memcalc.engine.memory import step_memory
from memcalc.harness.device import pick_device
from memcalc.harness.local import local_device, local_plan
from memcalc.harness.measure import MeasureOptions
from memcalc.harness.step import TrainingStep
from memcalc.harness.verify import verify
from memcalc.harness.watch.tensors import tracked_step
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.models import load_model
from memcalc.inputs.training import TrainingSetup
from tests.harness.models import GPT2, LLAMA

SETUPS: dict[str, dict[str, Any]] = {
    "bf16": {"precision": "bf16"},
    "mixed": {"precision": "bf16-mixed"},
    "recomputed": {"precision": "bf16", "recompute": "full", "grad_accum_steps": 2},
    "selective": {"precision": "bf16-mixed", "recompute": "sac", "optimizer_impl": "fused"},
    "chunked": {"precision": "bf16", "loss": "chunked", "attention": "efficient"},
}


@pytest.mark.parametrize("setup", SETUPS)
@pytest.mark.parametrize("model", [LLAMA, GPT2], ids=lambda m: m.name)
def test_tensors_take_the_predicted_bytes(model: ModelConfig, setup: str) -> None:
    stated = TrainingSetup(seq_len=128, micro_batch_size=2, **SETUPS[setup])
    plan = local_plan(model, stated, {}, "cuda")
    step = TrainingStep(plan, pick_device("cuda"))
    step.run()
    seen, told = tracked_step(step), step_memory(plan)
    assert (told.saved_bytes, told.peak_bytes) == (seen.saved, seen.peak)
    assert told.phases == {name: seen.phases[name] for name in told.phases}


@pytest.mark.parametrize("setup", SETUPS)
def test_a_slice_of_a_real_model_is_verified(setup: str) -> None:
    config = load_model("llama-3.2-1b")
    stated = TrainingSetup(seq_len=1024, num_layers=4, **SETUPS[setup])
    device = pick_device("cuda")
    plan = local_plan(config, stated, {}, "cuda")
    predicted = estimate(config, stated, gpu=local_device(device)).to_dict()
    options = MeasureOptions(device="cuda", steps=5, warmup=2)
    record = verify(plan, predicted, options)
    assert record["status"] == "ok" and record["loss_fell"]
    rows = record["comparison"]["rows"]
    outside = [row["name"] for row in rows if row["verdict"] == "outside"]
    assert record["comparison"]["verified"], outside
