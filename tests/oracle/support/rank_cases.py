"""Setups that real tensors can run too: with a CPU's kernels, on the fake group and on two gloo processes."""

from __future__ import annotations

from typing import Any

from memcalc.harness.ranks.layout import Layout
from memcalc.inputs.training import TrainingSetup
from tests.harness.models import GPT2, LLAMA
from tests.oracle.support.rank_draw import RankSetup

CPU_KERNELS: dict[str, Any] = {"device": "cpu", "norm": "decomposed"}


def _case(layout: Layout, config: Any = LLAMA, rank: int = 0, **setup: Any) -> RankSetup:
    stated = {"seq_len": 24, "micro_batch_size": 2, "precision": "bf16-mixed", **setup}
    kernels = dict(CPU_KERNELS)
    if config.norm_type == "layernorm":
        del kernels["norm"]
    return RankSetup(config, TrainingSetup(**stated), layout, kernels, rank)


#: For two processes; each is also run on the fake group.
PAIRS = {
    "fsdp": _case(Layout(dp=2, fsdp=True)),
    "fsdp-kept-fp32-full": _case(
        Layout(dp=2, fsdp=True, reshard=False), precision="fp32", recompute="full", grad_clip=True
    ),
    "fsdp-accum-sac": _case(Layout(dp=2, fsdp=True), grad_accum_steps=2, recompute="sac"),
    "ddp": _case(Layout(dp=2), grad_accum_steps=2),
    "tp": _case(Layout(tp=2), precision="fp32", loss="plain"),
    "tp-sp-gpt2": _case(Layout(tp=2, sp=True), GPT2, precision="bf16"),
}

#: Of more ranks, on the fake group alone.
MANY = {
    "fsdp-64-uneven": _case(Layout(dp=64, fsdp=True), rank=63, recompute="sac", precision="bf16"),
    "fsdp-kept-on-4-of-8": _case(Layout(dp=8, fsdp=True, reshard=4), rank=7, grad_accum_steps=2),
    "hsdp": _case(Layout(dp=8, fsdp=True, shard=4), rank=5),
    "fsdp-gpt2": _case(Layout(dp=8, fsdp=True), GPT2),
    "fsdp-x-tp-sp": _case(Layout(dp=4, tp=2, sp=True, fsdp=True), rank=7),
    "fsdp-x-tp-full-clip": _case(
        Layout(dp=4, tp=2, fsdp=True), recompute="full", grad_clip=True, optimizer_impl="loop"
    ),
    "ddp-of-4": _case(Layout(dp=4)),
    "one": _case(Layout(), precision="bf16", optimizer_impl="fused"),
}
