"""Worked cases of throughput: figures of public reports that a user will type in."""

from __future__ import annotations

import pytest

import memcalc
from memcalc import ParallelPlan, TrainingSetup

DAY_S = 86_400


def _time(model, parallel=None, gpu="a100-80gb", **fields):
    setup = TrainingSetup(**{"seq_len": 2048, **fields})
    return memcalc.estimate(model, setup, parallel=parallel, gpu=gpu, allocator=False).time


def test_llama_65b_on_2048_a100():
    """D6: 380 tokens/s/GPU; layout unpublished: TP8, ZeRO-1, attention core recomputed, gradients
    summed beside backward; 4 M tokens a step. 1.4 T tokens in about 21 days."""
    layout = ParallelPlan(
        gpus=2048, tp=8, zero=1, overlap_grad_reduce=True, overlap_param_gather=True
    )
    time = _time(
        "llama-65b", layout, stack="megatron", micro_batch_size=2, global_batch=2048,
        recompute="selective",
    )  # fmt: skip
    assert time.tokens_per_s_per_gpu == pytest.approx(380, rel=0.15)
    assert 1.4e12 / time.tokens_per_s / DAY_S == pytest.approx(20.8, rel=0.15)


def test_pure_zero_3_over_2048_gpus_waits_for_its_network():
    slow = ParallelPlan(gpus=2048, zero=3)
    time = _time("llama-65b", slow, stack="deepspeed", micro_batch_size=1, global_batch=2048)
    assert time.bound == "network"


def test_megatron_on_eight_h100():
    """Best published run: Llama-8B, s 8192, context parallel 2, bf16, no recompute: 10,153 tokens/s."""
    time = _time(
        "llama-3.1-8b", ParallelPlan(gpus=8, cp=2, zero=1), "h100-80gb", stack="megatron",
        seq_len=8192, micro_batch_size=1, grad_accum_steps=32, attention="cudnn", loss="fused",
    )  # fmt: skip
    # The fastest run there is: the estimate is of usual ones, which are up to a fifth slower.
    assert 0.75 * 10_153 <= time.tokens_per_s_per_gpu <= 1.05 * 10_153


def test_the_network_decides_where_compute_begins_to_bind():
    """U5: a run over several nodes at 64 Gb/s waits for its network, at 800 Gb/s it computes."""
    from dataclasses import replace

    from memcalc.inputs.hardware import load_gpu

    shown = {}
    for gbps in (64, 800):
        gpu = replace(load_gpu("a100-80gb")[0], nic_bytes_per_s=gbps / 8 * 1e9 / 8)
        time = _time(
            "llama-7b", ParallelPlan(gpus=64, fsdp=True), gpu, micro_batch_size=1,
        )  # fmt: skip
        shown[gbps] = time
    assert shown[64].bound == "network"
    assert shown[800].bound != "network"
    assert shown[64].exposed_communication_s > 5 * shown[800].exposed_communication_s
