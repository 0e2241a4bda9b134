"""Checkpoints: tensors on disk against torch.save, and the gathering of a sharded model's state dict."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor

from memcalc.engine.phases.saving import on_disk, saving
from memcalc.engine.plan import plan_of
from memcalc.errors import NotInThisVersionError
from memcalc.harness.ranks.layout import Layout
from memcalc.harness.ranks.rank_step import RankStep
from memcalc.harness.step import TrainingStep
from memcalc.harness.watch.tracker import StorageTracker
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.training import TrainingSetup
from tests.harness.models import GPT2, LLAMA
from tests.oracle.support.rank import fake_ranks, without_data
from tests.oracle.support.rank_draw import RankSetup

#: Bytes of names, alignment and records that torch.save adds for each tensor.
OVERHEAD = 2048


def size_of(tensors: list[Any]) -> int:
    return sum(t.nbytes for t in tensors if isinstance(t, torch.Tensor))


def saved(state: Any) -> int:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.tell()


@pytest.mark.parametrize("model", [LLAMA, GPT2], ids=lambda m: m.model_type)
@pytest.mark.parametrize(
    ("optimizer", "impl"),
    [("adamw", "foreach"), ("adamw", "loop"), ("sgd", "foreach"), ("momentum", "foreach"),
     ("adafactor", "foreach")],
)  # fmt: skip
def test_tensors_of_a_checkpoint_are_those_torch_saves(model, optimizer, impl):
    setup = TrainingSetup(
        seq_len=16, precision="fp32", optimizer=optimizer, optimizer_impl=impl, attention="eager"
    )
    plan = plan_of(model, setup, {"device": "cpu"})
    step = TrainingStep(plan, "cpu")
    step.run()
    found = on_disk(plan)
    states = [o.state_dict() for o in step.optimizers]
    tensors = [v for s in states for entry in s["state"].values() for v in entry.values()]
    assert size_of(tensors) == found.optimizer_bytes
    unique = {t.untyped_storage().data_ptr(): t for t in step.model.state_dict().values()}
    assert size_of(list(unique.values())) == found.model_bytes
    file = saved({"model": step.model.state_dict(), "optimizer": states})
    assert 0 < file - found.total_bytes < OVERHEAD * found.tensors


def test_a_state_dict_takes_no_memory_of_its_own():
    step = TrainingStep(plan_of(LLAMA, TrainingSetup(seq_len=16)), "meta")
    tracker = StorageTracker("meta")
    tracker.track(step.model)
    tracker.reset()
    with tracker:
        state = step.model.state_dict()
    assert len(state) > 10 and not tracker.events
    assert saving(plan_of(LLAMA, TrainingSetup(seq_len=16))).gathered_bytes == 0


_TO = torch.Tensor.to


def _to_host(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """The host is "meta" here, where "cpu" stands for the GPU."""
    if args != (torch.device("cpu"),) or isinstance(tensor, DTensor):
        return _TO(tensor, *args, **kwargs)
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


@pytest.mark.parametrize("shards", [2, 4, 3])
@pytest.mark.parametrize("cpu_offload", [True, False], ids=["offloaded", "kept"])
def test_a_full_state_dict_of_fsdp2_gathers_parameter_after_parameter(shards, cpu_offload):
    setup = TrainingSetup(seq_len=16, micro_batch_size=1, precision="bf16-mixed")
    case = RankSetup(LLAMA, setup, Layout(dp=shards, fsdp=True), {}, 0)
    options = StateDictOptions(full_state_dict=True, cpu_offload=cpu_offload)
    with fake_ranks(case.layout, 0) as ranks, without_data():
        step = RankStep(case.plan(), ranks)
        tracker = StorageTracker("cpu")
        tracker.track(step.model)
        before = tracker.live
        tracker.reset()
        with tracker, mock.patch.object(torch.Tensor, "to", _to_host):
            state = get_model_state_dict(step.model, options=options)
        peak = tracker.peak - before
        del state
    plan = plan_of(LLAMA, setup, None, ParallelPlan(gpus=shards, fsdp=True))
    assert saving(plan, cpu_offload).gathered_bytes == peak


def test_ddp_gathers_nothing_and_other_layouts_are_refused():
    setup = TrainingSetup(seq_len=16)
    assert saving(plan_of(LLAMA, setup, None, ParallelPlan(gpus=4))).gathered_bytes == 0
    with pytest.raises(NotInThisVersionError, match="FSDP2"):
        saving(
            plan_of(LLAMA, replace(setup, stack="deepspeed"), None, ParallelPlan(gpus=4, zero=3))
        )
    with pytest.raises(NotInThisVersionError, match="FSDP2"):
        saving(plan_of(LLAMA, setup, None, ParallelPlan(gpus=4, tp=2, fsdp=True)))
