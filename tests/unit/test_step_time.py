"""A step's time: its parts, pipelines, overlap, and what an estimate says of it."""

from __future__ import annotations

import pytest

import memcalc
from memcalc import ParallelPlan, TrainingSetup

PARTS = (
    "forward_s", "backward_s", "recompute_s", "launch_s", "exposed_communication_s", "bubble_s",
    "optimizer_s", "offload_s",
)  # fmt: skip


def _time(model="llama-3.1-8b", parallel=None, gpu="h100-80gb", **fields):
    setup = TrainingSetup(**{"seq_len": 2048, "micro_batch_size": 1, **fields})
    return memcalc.estimate(model, setup, parallel=parallel, gpu=gpu, allocator=False).time


@pytest.mark.parametrize(
    ("parallel", "fields"),
    [
        (None, {"recompute": "full", "grad_accum_steps": 4}),
        (ParallelPlan(dp=8, fsdp=True), {}),
        (ParallelPlan(tp=2, pp=4, dp=2), {"stack": "megatron", "grad_accum_steps": 8}),
        (ParallelPlan(pp=4, vpp=2, schedule="interleaved"),
         {"stack": "megatron", "grad_accum_steps": 8}),
        (ParallelPlan(pp=4, schedule="zb-h1"), {"grad_accum_steps": 8}),
    ],
)  # fmt: skip
def test_the_parts_add_up_to_the_step(parallel, fields):
    time = _time(parallel=parallel, **fields)
    parts = sum(getattr(time, name) for name in PARTS)
    assert parts == pytest.approx(time.step_s, rel=0.02 if parallel and parallel.pp > 1 else 1e-9)
    compute = sum(getattr(time, name) for name in PARTS[:4])
    assert compute == pytest.approx(time.compute_s, rel=1e-9)


def test_one_gpu_exchanges_nothing():
    time = _time("llama-3.2-1b")
    assert time.exposed_communication_s == time.hidden_communication_s == time.bubble_s == 0
    assert time.exchanges == ()


def test_rates_are_tokens_over_seconds():
    time = _time(parallel=ParallelPlan(dp=8), micro_batch_size=2, grad_accum_steps=3)
    tokens = 2 * 3 * 8 * 2048
    assert time.tokens_per_s == pytest.approx(tokens / time.step_s)
    assert time.tokens_per_s_per_gpu == pytest.approx(tokens / time.step_s / 8)
    assert time.samples_per_s == pytest.approx(2 * 3 * 8 / time.step_s)
    flops = time.model_flops_per_token * time.tokens_per_s_per_gpu
    assert time.mfu == pytest.approx(flops / 989.4e12)


def test_equal_stages_wait_as_the_formula_says():
    pp, batches = 4, 16
    time = _time(
        "llama-3.1-8b", ParallelPlan(pp=pp), stack="megatron", grad_accum_steps=batches,
        num_layers=None,
    )  # fmt: skip
    # Embedding and head make the ends longer, so the busiest rank waits less than (p - 1) / m.
    assert 0 < time.bubble_s < (pp - 1) / batches * time.compute_s


def test_accumulation_repeats_the_micro_batch_alone():
    one, four = (_time("llama-3.2-1b", grad_accum_steps=n) for n in (2, 4))
    assert four.compute_s == pytest.approx(2 * one.compute_s)
    assert four.optimizer_s == pytest.approx(one.optimizer_s)


def test_without_a_gpu_there_is_no_time():
    time = _time("llama-3.2-1b", gpu=None)
    assert time.step_s is None and time.mfu is None and time.model_flops_per_token > 0


def test_overlap_of_gradients_is_megatrons_choice():
    layout = {"gpus": 64, "tp": 8, "zero": 1}
    shown, hidden = (
        _time(
            parallel=ParallelPlan(**layout, overlap_grad_reduce=on, overlap_param_gather=on),
            stack="megatron",
            micro_batch_size=4,
        )  # fmt: skip
        for on in (False, True)
    )
    assert hidden.step_s < shown.step_s
    assert hidden.hidden_communication_s > 0
    with pytest.raises(memcalc.ConfigError, match="overlap_grad_reduce: got stack torch"):
        _time(parallel=ParallelPlan(dp=2, overlap_grad_reduce=True))


def test_the_json_has_every_part():
    result = memcalc.estimate("gpt2", TrainingSetup(), gpu="h100-80gb", allocator=False)
    plain = result.to_dict()["time"]
    assert plain["ops"][0].keys() == {
        "op", "part", "direction", "seconds", "bound", "kernels", "flops", "bytes", "kernel_flops",
        "dtype",
    }  # fmt: skip
    assert plain["calibration"].startswith("default-hopper")
