"""Loading sharded models: PyTorch's fully_shard block by block, accelerate's broadcast from rank 0.

On the fake process group. "meta" stands for the host, "cpu" for the GPU. Block by block, a block's
parameters are made on the device just before fully_shard cuts them: where it moves them itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from memcalc.engine.make_plan import plan_of
from memcalc.engine.phases.loading_ranks import loading_of
from memcalc.errors import ConfigError
from memcalc.harness.model.decoder import build
from memcalc.harness.ranks.layout import Layout
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.training import TrainingSetup
from tests.harness.models import GPT2, LLAMA
from tests.oracle.support.rank import fake_ranks, without_data
from tests.oracle.support.rank_tracker import RankTracker

SETUP = TrainingSetup(seq_len=16, micro_batch_size=1, precision="bf16-mixed")


def seen(model: ModelConfig, ranks: int, rank: int, load: Callable[[Any, Any], None]) -> int:
    """The peak of a way to load a model that is cut over ranks."""
    layout = Layout(dp=ranks, fsdp=True)
    with fake_ranks(layout, rank), without_data(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with unset_fake_temporarily():
            mesh = init_device_mesh("cpu", (ranks,))
        decoder = build(plan_of(model, SETUP, {"watched": True}), "meta", 0)
        tracker = RankTracker("cpu", [])
        with tracker:
            load(decoder, mesh)
        return tracker.peak


def made_here(module: nn.Module) -> None:
    """A module's parameters on the device; a tied one once."""
    known: dict[int, nn.Parameter] = {}
    for each in module.modules():
        for name, old in each._parameters.items():
            if old is not None and old.device.type == "meta":
                new = known.setdefault(
                    id(old), nn.Parameter(torch.empty(old.shape, dtype=old.dtype))
                )
                each._parameters[name] = new


def block_by_block(decoder: Any, mesh: Any) -> None:
    for module in (*decoder.layers, decoder):
        made_here(module)
        fully_shard(module, mesh=mesh)


_TO = torch.Tensor.to


def _to_device(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """From the host, which is "meta", to the device, which is "cpu"."""
    if args != ("cpu",) or isinstance(tensor, DTensor):
        return _TO(tensor, *args, **kwargs)
    return torch.empty(tensor.shape, dtype=tensor.dtype)


def from_rank_0(rank: int) -> Callable[[Any, Any], None]:
    fsdp_utils = pytest.importorskip("accelerate.utils.fsdp_utils", reason="accelerate loads so")

    def load(decoder: Any, mesh: Any) -> None:
        whole = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
            for name, tensor in decoder.state_dict().items()
        }
        for module in (*decoder.layers, decoder):
            fully_shard(module, mesh=mesh)
        accelerator = SimpleNamespace(is_main_process=rank == 0)
        with mock.patch.object(torch.Tensor, "to", _to_device):
            fsdp_utils.fsdp2_load_full_state_dict(accelerator, decoder, whole if rank == 0 else {})

    return load


def planned(model: ModelConfig, ranks: int) -> Any:
    return plan_of(model, SETUP, None, ParallelPlan(gpus=ranks, fsdp=True))


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("model", [LLAMA, GPT2], ids=lambda m: m.model_type)
def test_fully_shard_cuts_a_model_block_by_block(model: ModelConfig, ranks: int) -> None:
    """The rest, cut last, is whole beside everything: embedding and head."""
    assert loading_of(planned(model, ranks)).peak_bytes == seen(model, ranks, 0, block_by_block)


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("rank", [0, 1])
def test_rank_0_sends_one_parameter_after_the_other(rank: int, ranks: int) -> None:
    """The same on every rank: one that receives makes room for a parameter as large."""
    found = loading_of(planned(LLAMA, ranks), "rank0")
    assert found.peak_bytes == seen(LLAMA, ranks, rank, from_rank_0(rank))


def test_sending_needs_parts() -> None:
    with pytest.raises(ConfigError, match="rank0 without sharded.*nearest valid: --fsdp"):
        loading_of(plan_of(LLAMA, SETUP, None, ParallelPlan(gpus=2)), "rank0")
