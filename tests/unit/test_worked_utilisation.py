"""Worked cases U: three ways to measure utilisation, and networks that decide.

Both clusters of U5 have 8 A100 a node; what is between is tested in test_network_bound.py.
"""

from __future__ import annotations

from dataclasses import replace

from benchmarks.worked.case import Case
from memcalc import ParallelPlan, TrainingSetup, estimate
from memcalc.inputs.hardware import load_gpu
from tests.unit.worked_support import cases, hold


@cases("U")
def test_case(case: Case) -> None:
    hold(case)


def test_u5_of_a_gpu_whose_network_is_stated():
    """LLaMA-7B over 64 A100, FSDP: 64 Gb/s a node decide, 800 Gb/s do not."""
    shown = {}
    for gbps in (64, 800):
        gpu = replace(load_gpu("a100-80gb")[0], nic_bytes_per_s=gbps / 8 * 1e9 / 8)
        layout = ParallelPlan(gpus=64, fsdp=True)
        setup = TrainingSetup(seq_len=2048, micro_batch_size=1)
        shown[gbps] = estimate("llama-7b", setup, parallel=layout, gpu=gpu, allocator=False).time
    assert shown[64].bound == "network"
    assert shown[800].bound != "network"
    assert shown[64].exposed_communication_s > 5 * shown[800].exposed_communication_s
