"""What an estimate says about time: peaks by dtype, bounds, the page and its parts."""

from __future__ import annotations

import pytest

import memcalc
from memcalc import ParallelPlan, TrainingSetup
from memcalc.engine.make_plan import plan_of
from memcalc.engine.timing.answer import peak_flops_per_s
from memcalc.inputs.hardware import load_gpu
from memcalc.inputs.models import load_model
from memcalc.output.console import render
from memcalc.output.time_text import duration, exchanges_table, op_times_table, time_tables

H100 = load_gpu("h100-80gb")[0]


@pytest.mark.parametrize(
    ("precision", "peak"),
    [("bf16-mixed", 989.4e12), ("fp8-mixed", 1978.9e12), ("tf32", 494.7e12), ("fp32", 67e12)],
)
def test_utilisation_is_of_the_products_own_peak(precision, peak):
    plan = plan_of(load_model("llama-3.2-1b"), TrainingSetup(precision=precision))
    assert peak_flops_per_s(H100, plan) == peak


def test_the_lower_bound_is_the_causal_model_at_the_peak():
    time = memcalc.estimate(
        "llama-3.2-1b", TrainingSetup(micro_batch_size=8), gpu="h100-80gb", allocator=False
    ).time
    tokens = 8 * 2048
    assert time.lower_bound_s == pytest.approx(
        time.model_flops_causal_per_token * tokens / 989.4e12
    )
    assert time.upper_bound_s == time.step_s


def test_the_page_shows_parts_that_add_up():
    result = memcalc.estimate(
        "llama-3.1-8b", TrainingSetup(stack="megatron", grad_accum_steps=8),
        parallel=ParallelPlan(tp=2, pp=2, dp=2, zero=1), gpu="h100-80gb", allocator=False,
    )  # fmt: skip
    text = render(lambda page: time_tables(page, result))
    assert max(map(len, text.splitlines())) <= 80
    for word in ("forward", "backward", "pipeline bubble", "exposed communication", "step"):
        assert word in text
    assert "tokens/s" in text and "MFU" in text and "rates: default-hopper" in text
    shares = [
        float(line.split()[-1].rstrip("%")) for line in text.splitlines() if line.endswith("%")
    ]
    assert sum(shares[:-1]) == pytest.approx(100, abs=2)
    ops = render(lambda page: op_times_table(page, result.time))
    assert "gate_proj" in ops or "up_proj" in ops
    assert "reduce-scatter" in render(lambda page: exchanges_table(page, result.time))


def test_without_a_gpu_one_line_says_so():
    result = memcalc.estimate("gpt2", TrainingSetup(), allocator=False)
    assert "Step time: unknown" in render(lambda page: time_tables(page, result))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.2e-5, "32 us"), (0.0123, "12.3 ms"), (1.5, "1.5 s"), (4321.0, "4,321 s")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
