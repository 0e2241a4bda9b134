"""What one rank of many keeps in memory, in one process and without a GPU.

`run_rank` runs the harness's decoder and step (memcalc/harness/ranks) on torch's fake process group,
which has any number of ranks and answers every collective without data, on fake tensors ("cpu" without
data) and with CUDA's kernels: FSDP2, DTensor and DDP are PyTorch's own. Two steps warm up, the third is
tracked. Traps met, and how they are avoided:

- DTensor finds the shapes of an operator it meets for the first time by running it on whole tensors, in
  the very fake mode that is on: phantoms of global shape. Two steps run before the one that counts.
- FSDP makes its gathered parameters, Adam its states and DDP its buckets in the first step only.
- FSDP frees by `UntypedStorage.resize_`: no operator, and fake storages say "meta" (rank_tracker.py).
- A mesh reads its ranks, so it is made before the fake mode; reshard_after_forward as a number makes
  another mesh inside fully_shard, for which the fake mode is put off.
- `Module.to_empty` inside a fake mode swaps tensors and refuses parameters a weak reference knows; a
  model that is not split is therefore made on its device at once.
- DDP's reducer compares parameters of the ranks by their data, and reads the result of an all-reduce
  from a future that the fake group leaves empty: both are stood in for; buckets stay torch's own.
- The fake group's collectives end at once and hold nothing; NCCL's end later, on streams that the order
  of requests does not show.
- Python's garbage collector would free what sits in reference cycles at any time: off while tracked.
Checked by: oracle/test_rank_oracle.py.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.distributed._tools.fake_collectives  # noqa: F401  # collectives on fake tensors
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp._fully_shard import _fully_shard
from torch.distributed.tensor.debug import _clear_sharding_prop_cache
from torch.testing._internal.distributed.fake_pg import FakeStore

from memcalc.engine.make_plan import plan_of
from memcalc.engine.plan import Plan
from memcalc.harness.model import moe, norms
from memcalc.harness.ranks import experts
from memcalc.harness.ranks.layout import Layout
from memcalc.harness.ranks.layout_rules import check_layout
from memcalc.harness.ranks.rank_step import RankStep
from memcalc.harness.ranks.ranks import Ranks, init_grid
from memcalc.harness.watch.tensors import TensorBytes
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.training import TrainingSetup
from tests.oracle.support.rank_ddp import buckets_without_data
from tests.oracle.support.rank_dtensor import dtensor_without_data
from tests.oracle.support.rank_norm import fused_rms_norm
from tests.oracle.support.rank_tracker import RankEvent, tracked

CPU = torch.device("cpu")
#: Steps before the one that is watched: states exist after the first; DDP makes its buckets anew in
#: the second.
WARM_UP = 1


@dataclass(frozen=True)
class RankTrace:
    """One rank's third step. bytes: peaks by phase, states, categories at the peak, saved bytes.

    events: in order, what each took or gave back. live_before: bytes at the start of the step,
    live_after at its end; they are equal unless something is kept in a reference cycle.
    """

    plan: Plan
    layout: Layout
    rank: int
    bytes: TensorBytes
    events: list[RankEvent]

    @property
    def peak(self) -> int:
        """The most bytes alive in the step."""
        return self.bytes.peak

    @property
    def phases(self) -> dict[str, int]:
        """The most bytes alive in each phase."""
        return self.bytes.phases

    @property
    def live_before(self) -> int:
        return self.bytes.live_before

    @property
    def live_after(self) -> int:
        return self.live_before + sum(event.nbytes for event in self.events)

    def of_phase(self, *names: str) -> list[RankEvent]:
        """The events of some phases, in order."""
        return [event for event in self.events if event.phase in names]

    def live(self) -> Iterator[tuple[int, RankEvent]]:
        """Bytes alive after each event."""
        live = self.live_before
        for event in self.events:
            live += event.nbytes
            yield live, event

    def text(self) -> str:
        """One event a line: bytes alive after it, bytes, storage, place."""
        return "\n".join(
            f"{live:>14,} {e.nbytes:>+14,} #{e.storage:<5} {e.phase:<9} {e.where or '-':<20} "
            f"{e.comm or '-':<26} {e.aten if e.nbytes > 0 else ''}".rstrip()
            for live, e in self.live()
        )


def run_rank(
    config: ModelConfig,
    setup: TrainingSetup,
    layout: Layout,
    *,
    kernels: Mapping[str, Any] | None = None,
    rank: int = 0,
    bucket_views: bool = True,
) -> RankTrace:
    """A later step of one rank, on tensors without data and with CUDA's kernels.

    kernels: overrides of the plan's kernels, as `--set kernels.*`. bucket_views: whether DDP's
    gradients are views of its buckets, as the harness has them.
    """
    plan = plan_of(config, setup, {"watched": True, **(kernels or {})})
    check_layout(layout, plan)
    with fake_ranks(layout, rank) as ranks, without_data(bucket_views):
        step = RankStep(plan, ranks)
        return _traced(step, plan, rank)[0]


def run_rank_on_data(plan: Plan, ranks: Ranks, rank: int, repeats: int = 1) -> list[RankTrace]:
    """Later steps on real tensors, on whatever process group `ranks` is of."""
    return _traced(RankStep(plan, ranks), plan, rank, repeats)


@contextmanager
def fake_ranks(layout: Layout, rank: int = 0) -> Iterator[Ranks]:
    """This process as one rank of a fake process group."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=layout.size)
    _clear_sharding_prop_cache()  # it knows meshes by their ranks, and would find groups that are gone
    try:
        yield Ranks(layout, layout.place(rank), CPU, "fake", init_grid(layout, CPU))
    finally:
        dist.destroy_process_group()


def warm_up(layout: Layout) -> int:
    """Steps before the one that is watched."""
    return WARM_UP + (layout.replicas > 1 and not layout.fsdp)


def _traced(step: RankStep, plan: Plan, rank: int, repeats: int = 1) -> list[RankTrace]:
    traces = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
        for _ in range(warm_up(step.ranks.layout)):
            step.run()
        gc.collect()
        gc.disable()
        try:
            for _ in range(repeats):
                found, events = tracked(step)
                traces.append(RankTrace(plan, step.ranks.layout, rank, found, events))
        finally:
            gc.enable()
    return traces


@contextmanager
def without_data(bucket_views: bool = True) -> Iterator[None]:
    """Context: everything made is fake, on "cpu", and takes what it would take on a GPU.

    Scalars read back are 1.0, RMSNorm is CUDA's kernel, meshes made by FSDP are not fake.
    """
    second_mesh = _outside_fake_mode(_fully_shard._get_post_forward_mesh_info)
    joined = _outside_fake_mode(DeviceMesh._concatenate)
    with (
        mock.patch.object(torch.Tensor, "item", lambda self: 1.0),
        mock.patch.object(norms, "fused_rms_norm", fused_rms_norm),
        mock.patch.object(moe, "rows_of_each", _counted_in_integers),
        mock.patch.object(experts, "read_counts", _balanced),
        mock.patch.object(_fully_shard, "_get_post_forward_mesh_info", second_mesh),
        mock.patch.object(DeviceMesh, "_concatenate", joined),
        buckets_without_data(bucket_views),
        dtensor_without_data(),
        FakeTensorMode(),
    ):
        yield


def _counted_in_integers(ids: torch.Tensor, experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What a GPU makes: a CPU counts floats alone."""
    return ids.int(), ids.new_empty(experts, dtype=torch.int32)


def _balanced(counts: torch.Tensor, rows: int) -> list[int]:
    """As many rows to every rank."""
    each, more = divmod(rows, len(counts))
    return [each + (number < more) for number in range(len(counts))]


def _outside_fake_mode(make: Callable[..., Any]) -> Callable[..., Any]:
    def made(*args: Any) -> Any:
        with unset_fake_temporarily():
            return make(*args)

    return made
