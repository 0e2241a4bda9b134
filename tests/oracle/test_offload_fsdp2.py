"""FSDP2's CPUOffloadPolicy on the fake process group: what copies from the host add before a gather.

On a CPU the host is the device, so that PyTorch's copy is none: a clone stands for it here. Reduced
gradients stay where they are for the same reason; forward and loss are compared, where there are none.
"""

from __future__ import annotations

from functools import partial
from unittest import mock

import pytest
import torch
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard
from torch.distributed.fsdp._fully_shard._fsdp_param import FSDPParam

from memcalc.engine.make_plan import plan_of
from memcalc.engine.memory import step_memory
from memcalc.harness.ranks import part
from memcalc.harness.ranks.layout import Layout
from memcalc.inputs.hf import model_from_config
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.training import TrainingSetup
from tests.oracle.support.data_parallel import engine_rows, torch_rows
from tests.oracle.support.rank import RankTrace, run_rank
from tests.oracle.support.tiny import TINY


def copied_inputs(parameter: FSDPParam) -> list[torch.Tensor]:
    """all_gather_inputs with the copy a GPU would make."""
    data = parameter._sharded_param_data.clone()
    dtype = parameter.param_dtype
    return [data if dtype in (None, data.dtype) else data.to(dtype)]


def pytorch(setup: TrainingSetup, layout: Layout) -> RankTrace:
    offloading = partial(fully_shard, offload_policy=CPUOffloadPolicy(pin_memory=False))
    with (
        mock.patch.object(part, "fully_shard", offloading),
        mock.patch.object(FSDPParam, "all_gather_inputs", property(copied_inputs)),
    ):
        return run_rank(LLAMA, setup, layout)


LLAMA = model_from_config(TINY["llama"], "llama")


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16", "fp32"])
@pytest.mark.parametrize("dp", [1, 2])
def test_forward_and_loss_are_pytorchs(precision, dp):
    """Over what PyTorch keeps on the host: parts and their optimizer states."""
    setup = TrainingSetup(seq_len=32, precision=precision, optimizer_impl="foreach")
    theirs = pytorch(setup, Layout(dp=dp, fsdp=True))
    parallel = ParallelPlan(dp=dp, fsdp=True, offload="params")
    plan = plan_of(LLAMA, setup, {"watched": True}, parallel)
    ours = step_memory(plan)
    on_host = theirs.bytes.states["parameters"] + theirs.bytes.states["optimizer"]
    for phase in ("forward", "loss"):
        assert ours.phases[phase] + on_host == theirs.phases[phase], phase
    expected, found = (
        [row[::3] for row in rows if row[1] in ("forward", "loss")]
        for rows in (torch_rows(theirs), engine_rows(plan))
    )
    assert found == expected
