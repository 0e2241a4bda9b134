"""Seconds of ops: sums over the ledger's kernels, launching, bounds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from memcalc.engine.flops import step_flops
from memcalc.engine.make_plan import plan_of
from memcalc.engine.timing.op_time import Priced, attention_code, compute_time, work_s
from memcalc.engine.works import works_of
from memcalc.inputs.hardware import load_gpu
from memcalc.inputs.models import load_model
from memcalc.inputs.rates import rates_of
from memcalc.inputs.training import TrainingSetup

RATES = rates_of(load_gpu("h100-80gb")[0])


def _plan(model="llama-3.2-1b", **fields):
    return plan_of(load_model(model), TrainingSetup(**{"micro_batch_size": 4, **fields}))


def test_a_micro_batch_is_the_sum_of_its_kernels():
    plan = _plan(recompute="full")
    time = compute_time(plan, RATES)
    alone = sum(
        counted.times * work_s(counted.work, Priced(RATES), plan.values)[0]
        for counted in works_of(plan)
    )
    phases = (time.forward, time.backward, time.recompute)
    assert sum(phase.gpu_s for phase in phases) == pytest.approx(
        alone * RATES.sum_residual, rel=1e-12
    )
    assert sum(op.seconds for op in time.ops) == pytest.approx(
        alone * RATES.sum_residual, rel=1e-12
    )


@pytest.mark.parametrize("recompute", ["none", "selective", "sac", "full"])
def test_ops_hold_all_executed_flops(recompute):
    plan = _plan(recompute=recompute)
    time = compute_time(plan, RATES)
    assert sum(op.flops for op in time.ops) == step_flops(plan).executed


def test_small_steps_wait_for_their_launches():
    slow = replace(RATES, launch_s=1e-3)
    plan = _plan("gpt2", micro_batch_size=1, seq_len=64)
    fast, waiting = compute_time(plan, replace(RATES, launch_s=0.0)), compute_time(plan, slow)
    kernels = sum(op.kernels for op in waiting.ops)
    assert fast.launch_s == 0
    assert waiting.forward_s + waiting.backward_s == pytest.approx(kernels * 1e-3)
    assert waiting.launch_s > 0.9 * kernels * 1e-3


def test_kernels_of_a_graph_are_not_launched_one_by_one():
    setup = TrainingSetup(compile=True, micro_batch_size=1, seq_len=128)
    plan = plan_of(load_model("gpt2"), setup, {"cuda_graphs": True})
    assert compute_time(plan, replace(RATES, launch_s=1.0)).launch_s == 0


def test_bounds_are_what_an_op_does():
    bounds = {(op.op, op.direction): op.bound for op in compute_time(_plan(), RATES).ops}
    assert bounds["gate_proj", "backward"] == "compute"
    assert bounds["attn_norm", "forward"] == "bandwidth"
    small = compute_time(_plan("gpt2", micro_batch_size=1, seq_len=32), RATES)
    bounds = {(op.op, op.direction): op.bound for op in small.ops}
    assert bounds["attn_norm", "forward"] == "latency"


def test_transformer_engine_runs_cudnn_where_it_is_faster():
    plan = _plan(stack="megatron")
    ampere = rates_of(load_gpu("a100-80gb")[0])
    assert attention_code(plan, RATES) == "cudnn"
    assert attention_code(plan, ampere) == ""
    assert attention_code(_plan(), RATES) == ""
