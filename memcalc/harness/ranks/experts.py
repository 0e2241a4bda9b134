"""Expert parallelism of the decoder: each of ep ranks has some experts, and token rows go to them and back.

A rank sends every routed row to the rank of its expert and gets the rows of its own experts from all; it
puts them in the order of experts, and after the products back as they came; then they return. How many
rows go where is known on the host before they are sent, so each layer waits for the device once.
Experts' parameters are sharded over the ranks that have the same experts (FSDP2 with a mesh of their
own), along their rows where there are fewer experts than ranks.
Source: torchtitan, torchtitan/distributed/expert_parallel.py, models/common/moe/utils.py and
models/llama4/parallelize.py.
Checked by: oracle/test_expert_parallel.py, harness/test_distributed.py.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard

from memcalc.engine.parallel.experts.experts import cut_by_rows
from memcalc.harness.model.moe import Moe
from memcalc.harness.model.router import StackedWeights
from memcalc.harness.ranks.layout import Layout
from memcalc.harness.watch.scopes import op
from memcalc.inputs.model import ModelConfig


class Sent(NamedTuple):
    """What brings rows back: how they lay when they came, and how many went to and came from each rank."""

    shape: torch.Size
    order: Tensor
    received: list[int]
    sent: list[int]


def read_counts(counts: Tensor, rows: int) -> list[int]:
    """Numbers of a tensor on the host; rows: how many this rank has, as many as a balanced one gets."""
    found: list[int] = counts.tolist()
    return found


class ExpertRanks:
    """The exchange of token rows between the ranks of a group, each with equally many experts."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group, self.ranks = group, dist.get_world_size(group)

    def dispatch(self, rows: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Sent]:
        """Rows sorted by expert (R_s, h) and how many each of all experts has: those of this rank's."""
        counts = counts.int()  # a CPU counts in floats
        with torch.no_grad():
            from_ranks = functional.all_to_all_single(counts, None, None, self.group)
            from_ranks = functional.wait_tensor(from_ranks)  # type: ignore[no-untyped-call]
            sent = read_counts(counts.view(self.ranks, -1).sum(1), rows.shape[0])
            received = read_counts(from_ranks.view(self.ranks, -1).sum(1), rows.shape[0])
        rows = functional.all_to_all_single_autograd(rows, received, sent, self.group)
        with torch.no_grad():
            order, counts = _by_expert(from_ranks, self.ranks, rows.shape[0])
        shape = rows.shape
        rows = rows[order, :]
        return rows, counts, Sent(shape, order, received, sent)

    def combine(self, rows: Tensor, sent: Sent) -> Tensor:
        """Result rows as they came (R, h), sent back where they came from (R_s, h)."""
        with op("combine"):
            as_came = rows.new_empty(sent.shape)
            as_came[sent.order, :] = rows
            back: Tensor = functional.all_to_all_single_autograd(
                as_came, sent.sent, sent.received, self.group
            )
            return back


def _by_expert(counts: Tensor, ranks: int, rows: int) -> tuple[Tensor, Tensor]:
    """Where the rows of each expert are among those of all ranks (R), and how many it has in all.

    counts: of each expert of this rank from the first rank, then from the second, and so on.
    """
    starts = counts.cumsum(0) - counts
    by_rank = counts.view(ranks, -1)
    totals = by_rank.sum(0)
    lengths = by_rank.t().reshape(-1)
    starts = starts.view(ranks, -1).t().reshape(-1)
    ends = lengths.cumsum(0)
    shifts = starts - (ends - lengths)
    places = torch.arange(rows, device=counts.device)
    chunk = torch.searchsorted(ends, places, right=True)
    return places + shifts[chunk], totals


def split_experts(model: nn.Module, mesh: DeviceMesh) -> None:
    """Leave each mixture of a decoder on the meta device the experts of this rank."""
    group = mesh.get_group()
    for module in model.modules():
        if isinstance(module, Moe):
            module.ranks = ExpertRanks(group)
            for stacked in (module.expert_gate_up, module.expert_down):
                parts = stacked.weight.chunk(mesh.size(), 0)
                stacked.weight = nn.Parameter(torch.empty_like(parts[0]))


def expert_weights(module: nn.Module) -> set[nn.Parameter]:
    """The parameters of a block, or of a decoder, that belong to experts."""
    stacks = [one for one in module.modules() if isinstance(one, StackedWeights)]
    return {parameter for one in stacks for parameter in one.parameters()}


def cut_along(layout: Layout, config: ModelConfig) -> Shard:
    """Along which dimension the ranks with the same experts cut their weights (E, out, in)."""
    ranks = layout.shard_ranks
    simple = isinstance(layout.reshard, bool | None)
    return Shard(1 if simple and cut_by_rows(ranks, ranks // layout.ep, config) else 0)


@torch.no_grad()
def average_experts(model: nn.Module, ranks: int) -> None:
    """Experts get gradients of the losses of all ep ranks, of which FSDP takes no mean."""
    for parameter in expert_weights(model):
        if parameter.grad is not None:
            parameter.grad.div_(ranks)
