"""Optimizer steps: bytes a parameter against the field's figures, and what makes a step longer."""

from __future__ import annotations

from dataclasses import replace

import pytest

from memcalc.engine.make_plan import plan_of
from memcalc.engine.timing.optimizer_time import optimizer_s, stepped_by
from memcalc.inputs.hardware import load_gpu
from memcalc.inputs.models import load_model
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.rates import rates_of
from memcalc.inputs.training import TrainingSetup

RATES = rates_of(load_gpu("h100-80gb")[0])


def _plan(parallel=None, **fields):
    return plan_of(load_model("llama-3.2-1b"), TrainingSetup(**fields), parallel=parallel)


def _bytes_a_parameter(plan) -> float:
    """Bytes moved a parameter, from the seconds of kernels that begin at once."""
    rates = replace(RATES, memory=RATES.memory._replace(t0_s=0.0), launch_s=0.0)
    stepped = stepped_by([plan])
    return optimizer_s(rates, plan, stepped) * rates.memory.bytes_per_s / stepped.elements


# By hand, all reads and writes once: fp32 AdamW reads p, g, m, v and writes p, m, v: 7 x 4 bytes.
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"precision": "bf16-mixed", "optimizer_impl": "fused"}, 28),
        ({"precision": "bf16", "optimizer_impl": "fused"}, 14),
        ({"precision": "bf16", "optimizer_impl": "fused", "optimizer_dtype": "fp32"}, 22),
        ({"precision": "bf16-mixed", "optimizer_impl": "foreach"}, 80),
        ({"precision": "bf16-mixed", "optimizer": "sgd"}, 12),
        ({"precision": "bf16-mixed", "optimizer_impl": "fused", "grad_clip": True}, 28 + 12),
    ],
)
def test_bytes_a_parameter(fields, expected):
    assert _bytes_a_parameter(_plan(**fields)) == pytest.approx(expected, rel=0.02)


def test_a_loop_over_small_tensors_waits_for_its_launches():
    small = TrainingSetup(optimizer_impl="loop")
    plan = plan_of(load_model("smollm2-135m"), small)
    stepped = stepped_by([plan])
    assert optimizer_s(RATES, plan, stepped) >= 8 * stepped.tensors * RATES.launch_s


def test_ranks_that_share_states_step_over_their_part():
    whole = stepped_by([_plan()])
    shared = stepped_by([_plan(ParallelPlan(dp=8, fsdp=True))])
    assert shared.elements == pytest.approx(whole.elements / 8, rel=0.001)
    assert shared.state_bytes == pytest.approx(whole.state_bytes / 8, rel=0.001)


def test_muon_multiplies_matrices():
    plan = _plan(optimizer="muon")
    stepped = stepped_by([plan])
    layers, f, h = 16, 8192, 2048
    # Five iterations of X X^T, its square, and the update, for gate, up and down alone.
    mlp = 5 * 3 * layers * (2 * 2 * h * h * f + 2 * h**3)
    flops = sum(2 * times * m * n * k for times, m, n, k in stepped.products)
    assert flops > mlp
    assert optimizer_s(RATES, plan, stepped) > flops / RATES.gemm["bf16"].flops_per_s


def test_nothing_is_stepped_without_an_optimizer():
    plan = _plan(optimizer="none")
    assert optimizer_s(RATES, plan, stepped_by([plan])) == 0.0
