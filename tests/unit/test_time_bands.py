"""Bands of a step's time: the file's classes, and which of them an estimate takes."""

from __future__ import annotations

import tomllib

import memcalc
from memcalc import TrainingSetup
from memcalc.engine.make_plan import plan_of
from memcalc.engine.timing.bands import band_of
from memcalc.inputs.hardware import load_gpu
from memcalc.inputs.models import load_model
from memcalc.inputs.profiles import profiles_dir


def _band(stack, gpu, **fields):
    plan = plan_of(load_model("llama-3.2-1b"), TrainingSetup(stack=stack, **fields))
    return band_of(plan, load_gpu(gpu)[0])


def test_every_class_holds_the_prediction_and_the_last_takes_all():
    path = profiles_dir() / "bands" / "throughput.toml"
    rows = tomllib.loads(path.read_text("utf-8"))["band"]
    for row in rows:
        assert 0 < row["low"] <= 1 <= row["high"]
        assert row["reason"]
    assert "stacks" not in rows[-1] and "architectures" not in rows[-1]
    specific = [("stacks" in row, "architectures" in row) for row in rows]
    assert specific == sorted(specific, reverse=True)


def test_the_most_specific_class_is_taken():
    assert "stack fsdp1 on ampere" in _band("fsdp1", "a100-80gb").reason
    assert "on hopper" in _band("torch", "h100-80gb").reason
    assert "stack" not in _band("torch", "h100-80gb").reason
    assert "no published run" in _band("torch", "v100-32gb", precision="fp16-mixed").reason


def test_an_estimate_prints_the_band_it_took():
    time = memcalc.estimate(
        "llama-3.2-1b", TrainingSetup(stack="megatron"), gpu="a100-80gb", allocator=False
    ).time
    band = _band("megatron", "a100-80gb")
    assert (time.low_s, time.high_s) == (time.step_s * band.low, time.step_s * band.high)
    assert time.band == band.reason
