"""What sharding engines copy beside the ledger's kernels: bytes by hand."""

from __future__ import annotations

import pytest

from memcalc import ParallelPlan, TrainingSetup
from memcalc.engine.make_plan import plan_of
from memcalc.engine.timing.copies import copies_of
from memcalc.inputs.models import load_model

N = 1_235_814_400  # parameters of llama-3.2-1b, its head tied


def _copies(parallel, **fields):
    plan = plan_of(load_model("llama-3.2-1b"), TrainingSetup(**fields), parallel=parallel)
    found = {}
    for one in copies_of(plan):
        key = (one.op, one.direction)
        found[key] = found.get(key, 0) + one.moved
    return found


def test_one_gpu_copies_nothing():
    assert _copies(None) == {}


def test_fsdp2_copies_gathers_in_and_out():
    """bf16 whole: read and written once; this rank's eighth read in fp32 and written in bf16."""
    found = _copies(ParallelPlan(dp=8, fsdp=True))
    forward = N * 2 * 2 + N / 8 * (4 + 2)
    assert found["unshard", "forward"] == pytest.approx(forward, rel=0.002)
    # The root's parameters (the embedding) stay; gradients: bf16 read, fp32 written.
    assert found["unshard", "backward"] < found["unshard", "forward"]
    assert found["reduce_gradients", "backward"] == pytest.approx(N * (2 + 4), rel=0.002)


def test_fsdp1_joins_and_divides_flat_gradients():
    found = _copies(ParallelPlan(dp=8, zero=3), stack="fsdp1")
    assert found["unshard", "forward"] == pytest.approx(N / 8 * (4 + 2), rel=0.002)
    assert found["reduce_gradients", "backward"] == pytest.approx(N * (2 + 2) * 2, rel=0.002)


def test_nanotron_adds_every_gradient_to_an_fp32_one():
    found = _copies(ParallelPlan(dp=2), stack="nanotron", grad_accum_steps=4)
    assert found == {("add_gradients", "backward"): pytest.approx(N * (2 + 4 + 4), rel=0.01)}


def test_ddp_copies_its_buckets_once_a_step():
    once = _copies(ParallelPlan(dp=2))[("buckets", "backward")]
    spread = _copies(ParallelPlan(dp=2), grad_accum_steps=4)[("buckets", "backward")]
    assert spread == pytest.approx(once / 4)
    assert once in (N * 4 * 2, N * 4 * 4)
