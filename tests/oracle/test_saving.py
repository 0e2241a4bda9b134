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

from memcalc.engine.make_plan import plan_of
from memcalc.engine.phases.files import on_disk
from memcalc.engine.phases.saving import saving
from memcalc.engine.plan import Plan
from memcalc.harness.ranks.layout import Layout
from memcalc.harness.ranks.rank_step import RankStep
from memcalc.harness.step import TrainingStep
from memcalc.harness.watch.tracker import StorageTracker
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.peft import PeftSetup
from memcalc.inputs.training import TrainingSetup
from tests.harness.models import GPT2, LLAMA
from tests.oracle.support.peft_compare import plan_for
from tests.oracle.support.peft_models import PeftRun, _model
from tests.oracle.support.rank import fake_ranks, without_data
from tests.oracle.support.rank_draw import RankSetup
from tests.oracle.support.rank_peft import TunedRank
from tests.oracle.support.tiny import TINY
from tests.oracle.test_peft import lora

SETUP = TrainingSetup(seq_len=16, micro_batch_size=1, precision="bf16-mixed")
ADAPTERS = PeftSetup(rank=4, targets=("all-linear",))
#: Bytes of names, alignment and records that torch.save adds for each tensor.
OVERHEAD = 2048


def size_of(tensors: list[Any]) -> int:
    return sum(t.nbytes for t in tensors if isinstance(t, torch.Tensor))


def saved(state: Any) -> int:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.tell()


def checkpointed(model: ModelConfig, optimizer: str, impl: str) -> Plan:
    """The plan of a run that is written on a CPU."""
    setup = TrainingSetup(
        seq_len=16, precision="fp32", optimizer=optimizer, optimizer_impl=impl, attention="eager"
    )
    return plan_of(model, setup, {"device": "cpu"})


def stepped(plan: Plan) -> TrainingStep:
    """The same after a step, so that optimizer states are there."""
    step = TrainingStep(plan, "cpu")
    step.run()
    return step


def sizes_of(step: TrainingStep) -> tuple[int, int]:
    """Bytes of the tensors that PyTorch's state dicts hold: the model's, each once, and the optimizers'."""
    states = [o.state_dict() for o in step.optimizers]
    tensors = [v for s in states for entry in s["state"].values() for v in entry.values()]
    unique = {t.untyped_storage().data_ptr(): t for t in step.model.state_dict().values()}
    return size_of(list(unique.values())), size_of(tensors)


@pytest.mark.parametrize("model", [LLAMA, GPT2], ids=lambda m: m.model_type)
@pytest.mark.parametrize(
    ("optimizer", "impl"),
    [("adamw", "foreach"), ("adamw", "loop"), ("sgd", "foreach"), ("momentum", "foreach"),
     ("adafactor", "foreach")],
)  # fmt: skip
def test_tensors_of_a_checkpoint_are_those_torch_saves(model, optimizer, impl):
    plan = checkpointed(model, optimizer, impl)
    step, found = stepped(plan), on_disk(plan)
    assert sizes_of(step) == (found.model_bytes, found.optimizer_bytes)
    states = [o.state_dict() for o in step.optimizers]
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


def gathered(model: Any, **options: Any) -> int:
    """The most that a state dict takes beside a rank's model."""
    tracker = StorageTracker("cpu")
    tracker.track(model)
    before = tracker.live
    tracker.reset()
    with tracker, mock.patch.object(torch.Tensor, "to", _to_host):
        state = get_model_state_dict(model, options=StateDictOptions(**options))
    assert state
    return tracker.peak - before


def of_layout(layout: Layout, **options: Any) -> int:
    """The same of the harness's decoder divided so."""
    case = RankSetup(LLAMA, SETUP, layout, {}, 0)
    with fake_ranks(layout, 0) as ranks, without_data():
        model = RankStep(case.plan(), ranks).model
        if layout.tp > 1:
            get_model_state_dict(
                model, options=StateDictOptions(**options)
            )  # DTensor knows all now
        return gathered(model, **options)


@pytest.mark.parametrize("shards", [2, 4, 3])
@pytest.mark.parametrize("form", ["full", "full-gpu"])
def test_a_full_state_dict_of_fsdp2_gathers_parameter_after_parameter(shards, form):
    peak = of_layout(Layout(dp=shards, fsdp=True), full_state_dict=True, cpu_offload=form == "full")
    plan = plan_of(LLAMA, SETUP, None, ParallelPlan(gpus=shards, fsdp=True))
    assert saving(plan, form).gathered_bytes == peak


@pytest.mark.parametrize("form", ["full", "full-gpu"])
def test_a_full_state_dict_of_tensor_parallel_ranks(form):
    peak = of_layout(Layout(tp=2), full_state_dict=True, cpu_offload=form == "full")
    assert saving(plan_of(LLAMA, SETUP, None, ParallelPlan(tp=2)), form).gathered_bytes == peak


def test_both_ways_of_dividing_are_gathered_one_after_the_other():
    """Within a row of the embedding: 500 rows over eight ranks are padded."""
    peak = of_layout(Layout(dp=4, tp=2, fsdp=True), full_state_dict=True, cpu_offload=True)
    found = saving(plan_of(LLAMA, SETUP, None, ParallelPlan(gpus=8, tp=2, fsdp=True)))
    assert found.gathered_bytes == peak and not found.exact


@pytest.mark.parametrize("layout", [Layout(dp=4, fsdp=True), Layout(tp=2)], ids=["fsdp", "tp"])
def test_a_sharded_state_dict_gathers_nothing(layout):
    assert of_layout(layout) == 0
    plan = plan_of(LLAMA, SETUP, None, ParallelPlan(dp=layout.dp, tp=layout.tp, fsdp=layout.fsdp))
    assert saving(plan, "sharded").gathered_bytes == 0


TUNED = TunedRank(
    config=TINY["llama"], method=lora(ADAPTERS), setup=ADAPTERS, layout=Layout(dp=4, fsdp=True)
)


def of_adapters(form: str) -> int:
    """accelerate leaves frozen parameters out where an adapter alone is written."""
    options = {"full_state_dict": True, "cpu_offload": True}
    return TUNED.with_model(  # type: ignore[no-any-return]
        lambda model: gathered(model, ignore_frozen_params=form == "adapter", **options)
    )


@pytest.mark.parametrize("form", ["adapter", "full"])
def test_adapters_of_fsdp2_are_gathered_alone(form):
    assert saving(TUNED.plan(), form).gathered_bytes == of_adapters(form)


def to_merge(dtype: str) -> tuple[PeftRun, PeftSetup]:
    """Adapters of a dtype."""
    setup = replace(ADAPTERS, dtype=dtype)
    return PeftRun(method=lora(setup), widens=dtype == "fp32"), setup


def merged(run: PeftRun) -> int:
    """The most that PEFT's merging takes beside the model."""
    with torch.device("meta"):
        model = _model(TINY["llama"], run)
    tracker = StorageTracker("meta")
    tracker.track(model)
    before = tracker.live
    tracker.reset()
    with tracker:
        model.merge_adapter()
    return tracker.peak - before


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_merging_makes_two_changes_as_large_as_a_weight(dtype):
    run, setup = to_merge(dtype)
    plan = plan_for(TINY["llama"], run, setup)
    assert saving(plan, "merged").gathered_bytes == merged(run)
    base = on_disk(plan, "full").model_bytes - on_disk(plan, "adapter").model_bytes
    assert on_disk(plan, "merged").model_bytes == base


def test_ddp_gathers_nothing():
    assert saving(plan_of(LLAMA, SETUP, None, ParallelPlan(gpus=4))).gathered_bytes == 0
