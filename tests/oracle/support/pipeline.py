"""One rank of a pipeline under PyTorch's own schedules, in one process and without a GPU.

The rank's stages are the harness's (`Part`), the schedule and its runtime torch's own, on torch's fake
process group and on tensors without data. What a real run has from other ranks is stood in for:
- sends and receives move nothing; their Work objects hold the tensor as long as they live, as those
  of NCCL (outputs_) and gloo (SendWork) do;
- the vote about metadata is won: every stage states its inputs and outputs.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import schedules as torch_schedules

from memcalc.engine.parallel.pipeline.pipeline import pipe_of
from memcalc.engine.parallel.pipeline.schedules import chunks_of
from memcalc.engine.parallel.ranks import chunk_layers
from memcalc.engine.plan import Plan
from memcalc.harness.model.casting import DTYPES
from memcalc.harness.model.decoder import parameters_made
from memcalc.harness.optimizers import make_optimizers
from memcalc.harness.ranks import rank_step
from memcalc.harness.ranks.layout import Layout, Place
from memcalc.harness.ranks.part import Part, build_part, running_plan
from memcalc.harness.ranks.rank_step import RankStep, _Stage
from memcalc.harness.ranks.ranks import Ranks
from memcalc.harness.ranks.split_layers import split_layers
from memcalc.harness.step import OnPhase
from memcalc.harness.watch.tensors import TensorBytes
from tests.oracle.support.rank import CPU, fake_ranks, without_data
from tests.oracle.support.rank_tracker import RankEvent, tracked

SCHEDULES: dict[str, Any] = {
    "gpipe": torch_schedules.ScheduleGPipe,
    "1f1b": torch_schedules.Schedule1F1B,
    "interleaved": torch_schedules.ScheduleInterleaved1F1B,
    "zb-h1": torch_schedules.ScheduleInterleavedZeroBubble,
    "zb-v": torch_schedules.ScheduleZBVZeroBubble,
    "dualpipe": torch_schedules.ScheduleDualPipeV,
}
_SINGLE = ("gpipe", "1f1b")
WARM_UP = 1


@dataclass(frozen=True, kw_only=True)
class _Cut(Layout):
    """A layout whose stages are chunks with the layers of the plan."""

    ranges: tuple[range, ...] = ()

    def stage_layers(self, layers: int) -> list[range]:
        return list(self.ranges)


class StagesStep(RankStep):
    """A step of a rank that holds any number of chunks."""

    def __init__(self, plan: Plan, rank: int, grid: Ranks) -> None:
        layout, pipe = plan.parallel, pipe_of(plan)
        cut = _Cut(**_degrees(plan, layout.chunks), ranges=tuple(chunk_layers(plan)))
        numbers = chunks_of(layout.schedule, pipe, rank)
        at = [Ranks(cut, Place(pp=number), CPU, "fake", grid.mesh) for number in numbers]
        self.plan, self.ranks, self.device = plan, grid, CPU
        parts: list[nn.Module] = [self._part(one) for one in at]
        self.model = parts[0] if len(parts) == 1 else nn.ModuleList(parts)  # type: ignore[assignment]
        self.optimizers = make_optimizers(plan.optimizer, self.model)
        self.ids = self._rows(0)
        self.labels = self.ids.clone() if plan.resolved.setup.separate_labels else self.ids
        self.called, self._buckets = self.model, []
        if grid.layout.dp > 1 and not grid.layout.fsdp:
            group = grid.along("dp").get_group()
            parts = [
                rank_step.DistributedDataParallel(  # as `without_data` has it
                    part, process_group=group, gradient_as_bucket_view=True
                )
                for part in parts
            ]
            self.called = parts[0]
        self.pipeline = _Stages(self, parts, at)  # type: ignore[assignment]

    def _part(self, ranks: Ranks) -> nn.Module:
        """A chunk of the model as this rank holds it."""
        layout, plan = ranks.layout, self.plan
        if layout.fsdp:
            return build_part(running_plan(plan.whole, ranks), ranks, 0)
        with parameters_made(plan.kernels.param_dtype, "meta" if layout.tp > 1 else CPU):
            part = Part(running_plan(plan, ranks), ranks)
        if layout.tp > 1:
            split_layers(part, ranks.along("tp"), layout.sp)
            part.to_empty(device=CPU)
        return part

    def _rows(self, seed: int) -> Tensor:
        resolved = self.plan.resolved
        shape = (resolved.micro_batch_size, resolved.seq_len)
        return torch.zeros(shape, dtype=torch.int64, device=self.device)


def _degrees(plan: Plan, stages: int) -> dict[str, Any]:
    """The harness's names for a layout."""
    layout = plan.parallel
    more = {"fsdp": layout.zero > 1, "shard": layout.shard, "reshard": layout.reshard}
    named = {name: value for name, value in more.items() if value is not None}
    return {"dp": layout.copies, "tp": layout.tp, "sp": bool(layout.sp), "pp": stages, **named}


class _Stages:
    """A rank's stages under one of torch's schedules."""

    def __init__(self, step: StagesStep, parts: list[Any], at: list[Ranks]) -> None:
        plan = step.plan
        resolved, kernels, name = plan.resolved, plan.kernels, plan.parallel.schedule
        self.count = resolved.grad_accum_steps
        self.tokens = step.ids.repeat(self.count, 1)
        positions = resolved.seq_len // (plan.parallel.tp if plan.parallel.sp else 1)
        shape = (resolved.micro_batch_size, positions, plan.config.hidden_size)
        dtype = DTYPES[kernels.param_dtype if kernels.autocast else kernels.compute_dtype]
        stream = torch.empty(shape, dtype=dtype, device="meta", requires_grad=True)
        ids = torch.empty(step.ids.shape, dtype=torch.int64, device="meta")
        loss = torch.empty(1, device="meta", requires_grad=True)
        self.stages = [
            _Stage(
                part,
                one.place.pp,
                one.layout.pp,
                CPU,
                input_args=(ids if one.is_first_stage else stream,),
                output_args=(loss if one.is_last_stage else stream,),
                group=step.ranks.along("pp").get_group(),
            )
            for part, one in zip(parts, at, strict=True)
        ]
        self.first = any(one.is_first_stage for one in at)
        self.last = any(one.is_last_stage for one in at)
        given = self.stages[0] if name in _SINGLE else self.stages
        # The half backward detaches the loss, which a view does not allow.
        loss_fn = _summed if name.startswith(("zb", "dual")) else _squeezed
        self.schedule = SCHEDULES[name](given, self.count, loss_fn=loss_fn, scale_grads=False)

    def run(self, on_phase: OnPhase, keep_loss: bool) -> Tensor | None:
        for stage in self.stages:
            stage.on_phase = on_phase
        given: tuple[Tensor, ...] = (self.tokens,) if self.first else ()
        if not self.last:
            self.schedule.step(*given, return_outputs=False)
            return None
        losses: list[Tensor] = []
        more: dict[str, Any] = {"target": self.tokens, "losses": losses, "return_outputs": False}
        self.schedule.step(*given, labels=self.tokens, **more)
        return None

    def held_tensors(self) -> list[Tensor]:
        found = [self.tokens]
        for stage in self.stages:
            infos = [*stage.args_recv_info.values(), *stage.grad_recv_info.values()]
            buffers = [info.buffer for entry in infos for info in entry]
            tensors = [buffer for buffer in buffers if isinstance(buffer, Tensor)]
            found += [*tensors, *(t.grad for t in tensors if t.grad is not None)]
        return found


def _squeezed(loss: Tensor, _: Tensor) -> Tensor:
    return loss.squeeze(0)


def _summed(loss: Tensor, _: Tensor) -> Tensor:
    return loss.sum()


class _Work:
    """A send or receive that is over, and holds its tensor."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def wait(self) -> None:
        pass


@contextmanager
def _alone() -> Iterator[None]:
    """Sends and receives of pipelines move nothing."""

    def batched(ops: list[Any], desc: str | None = None) -> list[_Work]:
        return [_Work(op.tensor) for op in ops]

    with (
        mock.patch.object(torch_schedules, "_batch_p2p", batched),
        mock.patch.object(dist, "send", lambda *args, **kwargs: None),
        mock.patch.object(dist, "recv", lambda tensor, **kwargs: tensor.fill_(1)),
    ):
        yield


def run_stage(plan: Plan, rank: int) -> tuple[TensorBytes, list[RankEvent]]:
    """A later step of a stage's first rank: what it took, and every event."""
    layout = Layout(**_degrees(plan, plan.parallel.pp))
    with ExitStack() as stack:
        grid = stack.enter_context(fake_ranks(layout, rank * layout.dp * layout.tp))
        stack.enter_context(without_data())
        stack.enter_context(_alone())
        step = StagesStep(plan, rank, grid)
        for _ in range(WARM_UP + (layout.dp > 1)):  # DDP makes its buckets anew in the second
            step.run()
        gc.collect()
        gc.disable()
        try:
            return tracked(step)
        finally:
            gc.enable()
