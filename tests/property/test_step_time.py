"""What is true of every step's time, whatever the model, the device and the layout."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

import memcalc
from memcalc import ParallelPlan, TrainingSetup
from memcalc.engine.device_side import device_of
from memcalc.inputs.hardware import load_gpu

LAYOUTS = (
    (None, "torch"), (None, "hf"), (ParallelPlan(dp=8), "torch"),
    (ParallelPlan(dp=16, fsdp=True), "torchtitan"), (ParallelPlan(dp=8, zero=3), "deepspeed"),
    (ParallelPlan(tp=2, pp=2, dp=2, zero=1), "megatron"), (ParallelPlan(tp=4, dp=4), "nanotron"),
    (ParallelPlan(pp=4, schedule="gpipe"), "torch"),
)  # fmt: skip
GPUS = ("a100-80gb", "h100-80gb", "b200-180gb", "rtx-4090", "v100-32gb", "mi300x", "l40s")
cases = st.fixed_dictionaries(
    {
        "model": st.sampled_from(("gpt2", "llama-3.2-1b", "qwen3-1.7b", "pythia-160m")),
        "layout": st.sampled_from(LAYOUTS),
        "gpu": st.sampled_from(GPUS),
        "seq_len": st.sampled_from((128, 512, 1024)),
        "micro_batch_size": st.sampled_from((1, 2, 8)),
        "recompute": st.sampled_from(("none", "full")),
    }
)


def _time(case, gpu):
    parallel, stack = case["layout"]
    setup = TrainingSetup(
        seq_len=case["seq_len"], micro_batch_size=case["micro_batch_size"], grad_accum_steps=4,
        recompute=case["recompute"], stack=stack, precision=_precision(gpu),
    )  # fmt: skip
    device = device_of(gpu)
    return memcalc.estimate(
        case["model"], setup, parallel=parallel, gpu=device, allocator=False
    ).time


def _precision(gpu) -> str:
    return "bf16-mixed" if "bf16" in gpu.peak_flops_per_s else "fp16-mixed"


def _possible(case):
    parallel, stack = case["layout"]
    if stack == "torch" and parallel is not None and parallel.pp > 1:
        return case["model"] == "pythia-160m"  # stages of the others would share the embedding
    plain = stack in ("torch", "hf", "deepspeed")
    return plain or (case["model"] == "llama-3.2-1b" and case["gpu"] != "v100-32gb")


@settings(max_examples=40, deadline=None)
@given(cases.filter(_possible))
def test_no_step_beats_its_bounds(case):
    time = _time(case, load_gpu(case["gpu"])[0])
    assert 0 < time.lower_bound_s <= time.step_s <= time.upper_bound_s * (1 + 1e-12)
    assert time.low_s <= time.step_s <= time.high_s
    assert 0 < time.mfu_causal <= time.mfu <= 1
    assert time.hfu >= time.mfu
    for name in ("forward_s", "backward_s", "optimizer_s", "exposed_communication_s", "bubble_s"):
        assert getattr(time, name) >= 0


FASTER = {
    "memory": lambda g: {"memory_bandwidth_bytes_per_s": 2 * g.memory_bandwidth_bytes_per_s},
    "products": lambda g: {"peak_flops_per_s": {k: 2 * v for k, v in g.peak_flops_per_s.items()}},
    "link": lambda g: {"link_unidirectional_bytes_per_s": 2 * (g.link_unidirectional_bytes_per_s or 1)},
    "network": lambda g: {"nic_bytes_per_s": 2 * (g.nic_bytes_per_s or 1)},
}  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(cases.filter(_possible), st.sampled_from(tuple(FASTER)))
def test_a_faster_part_never_makes_a_step_slower(case, what):
    gpu = load_gpu(case["gpu"])[0]
    if what in ("link", "network") and getattr(gpu, _FIELD[what]) is None:
        return
    faster = replace(gpu, **FASTER[what](gpu))
    assert _time(case, faster).step_s <= _time(case, gpu).step_s * (1 + 1e-9)


_FIELD = {"link": "link_unidirectional_bytes_per_s", "network": "nic_bytes_per_s"}
