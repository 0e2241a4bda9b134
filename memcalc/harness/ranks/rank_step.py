"""A training step of one rank: its rows of the batch through its part of the model.

The batch of one process, dp times as long, is split over the dp ranks, so the mean of their losses is
that process's loss. DDP averages gradients after the last micro-batch (its buckets are the gradients'
memory); FSDP after each, for gradients kept whole until the last would take the memory it saves; in a
pipeline the schedule decides. Gradients of several micro-batches are summed, as in one process.
Checked by: harness/test_distributed.py.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import loss_parallel
from torch.nn.parallel import DistributedDataParallel

from memcalc.engine.plan import Plan
from memcalc.harness.model.casting import DTYPES
from memcalc.harness.optimizers import make_optimizers
from memcalc.harness.ranks.experts import average_experts
from memcalc.harness.ranks.part import build_part, rank_positions, running_plan
from memcalc.harness.ranks.ranks import Ranks
from memcalc.harness.ranks.split_layers import sum_partial_gradients
from memcalc.harness.step import OnPhase, TrainingStep
from memcalc.harness.watch.scopes import op

_SCHEDULES = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}


class RankStep(TrainingStep):
    """The step of a rank; `loss` is that of its rows, None on stages before the last."""

    def __init__(self, plan: Plan, ranks: Ranks, seed: int = 0) -> None:
        self.plan, self.ranks, self.device = running_plan(plan, ranks), ranks, ranks.device
        self.model = build_part(self.plan, ranks, seed)
        self.optimizers = make_optimizers(self.plan.optimizer, self.model)
        self.called: nn.Module = self.model
        layout = ranks.layout
        if layout.replicas > 1 and not layout.fsdp:
            group = ranks.replicas.get_group()
            self.called = DistributedDataParallel(
                self.model, process_group=group, gradient_as_bucket_view=True
            )
        self.ids = self._rows(seed)
        self.labels = self.ids.clone() if plan.resolved.setup.separate_labels else self.ids
        self._buckets: list[Tensor] = []
        self.pipeline = _Pipeline(self) if layout.pp > 1 else None

    def _rows(self, seed: int) -> Tensor:
        """This rank's rows of the ids a run in one process would draw."""
        resolved, layout = self.plan.resolved, self.ranks.layout
        rows = resolved.micro_batch_size
        generator = torch.Generator("cpu").manual_seed(seed + 1)
        shape = (rows * layout.dp, resolved.seq_len)
        ids = torch.randint(self.plan.config.vocab_size, shape, generator=generator)
        first = rows * self.ranks.place.dp
        ids = ids[first : first + rows].clone().to(self.device)
        return ids if layout.cp == 1 else ids[:, rank_positions(self.plan, self.ranks)]

    def micro_batches(self, on_phase: OnPhase, keep_loss: bool) -> Tensor | None:
        """Every micro-batch, gradients of all ranks reduced; the last one's loss if it is wanted."""
        accum, loss = self.plan.resolved.grad_accum_steps, None
        with loss_parallel() if self.ranks.layout.tp > 1 else contextlib.nullcontext():
            if self.pipeline is not None:
                loss = self.pipeline.run(on_phase, keep_loss)
            else:
                for number in range(accum):
                    last = number == accum - 1
                    with self._reducing(last):
                        loss = self.micro_batch(on_phase, keep_loss and last)
        if self.ranks.layout.tp > 1:
            self.before_sums()
            with op("partial_gradients"):
                sum_partial_gradients(self.model)
        if self.ranks.layout.ep > 1:
            with op("partial_gradients"):
                average_experts(self.model, self.ranks.layout.ep)
        if isinstance(self.called, DistributedDataParallel):
            self._buckets = _one_of_each_storage(self.model)
        return loss

    def micro_batch(self, on_phase: OnPhase, keep_loss: bool) -> Tensor | None:
        """Forward, loss and backward of this rank's rows."""
        on_phase("forward")
        loss: Tensor = self.called(self.ids, self.labels)
        on_phase("backward")
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach() if keep_loss else None

    @contextlib.contextmanager
    def _reducing(self, last: bool) -> Iterator[None]:
        """DDP adds up the gradients of earlier micro-batches without talking to other ranks."""
        if isinstance(self.called, DistributedDataParallel) and not last:
            with self.called.no_sync():
                yield
        else:
            yield

    def clip_gradients(self) -> None:
        """Clip by the norm over all parameters of all ranks."""
        if self.pipeline is None:
            super().clip_gradients()
            return
        parameters = list(self.model.parameters())
        grads = [p.grad for p in parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(grads, 2.0)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        squares = norm**2
        dist.all_reduce(squares, group=self.ranks.along("pp").get_group())
        nn.utils.clip_grads_with_norm_(parameters, 1.0, squares.sqrt())

    def other_tensors(self) -> list[Tensor]:
        """DDP's buckets, and what a stage receives into."""
        received = [] if self.pipeline is None else self.pipeline.held_tensors()
        return [*self._buckets, *received]


def _one_of_each_storage(model: nn.Module) -> list[Tensor]:
    """One gradient of each bucket: DDP keeps their memory when the gradients are dropped."""
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    return list({grad.untyped_storage()._cdata: grad for grad in grads}.values())


class _Pipeline:
    """This rank's stage under torch's schedule. Micro-batches are the same rows again."""

    def __init__(self, step: RankStep) -> None:
        plan, ranks = step.plan, step.ranks
        resolved, layout = plan.resolved, ranks.layout
        self.ranks, self.count = ranks, resolved.grad_accum_steps
        self.tokens = step.ids.repeat(self.count, 1)
        s = resolved.seq_len // (layout.cp * (layout.tp if layout.sp else 1))
        shape = (resolved.micro_batch_size, s, plan.config.hidden_size)
        kernels = plan.kernels
        dtype = kernels.param_dtype if kernels.autocast else kernels.compute_dtype
        stream = torch.empty(shape, dtype=DTYPES[dtype], device="meta", requires_grad=True)
        given = torch.empty(step.ids.shape, dtype=torch.int64, device="meta")
        loss = torch.empty(1, device="meta", requires_grad=True)
        self.stage = _Stage(
            step.called,
            ranks.place.pp,
            layout.pp,
            ranks.device,
            input_args=(given if ranks.is_first_stage else stream,),
            output_args=(loss if ranks.is_last_stage else stream,),
            group=ranks.along("pp").get_group(),
        )
        kind = _SCHEDULES[layout.schedule]
        options: dict[str, Any] = {"loss_fn": lambda loss, _: loss.squeeze(0)}
        if "scale_grads" in inspect.signature(kind.__init__).parameters:
            options["scale_grads"] = False  # gradients are summed, as in one process
        self.schedule: Any = kind(self.stage, self.count, **options)
        self._more: dict[str, Any] = {}
        if "return_outputs" in inspect.signature(self.schedule.step).parameters:
            self._more["return_outputs"] = False

    def run(self, on_phase: OnPhase, keep_loss: bool) -> Tensor | None:
        """One schedule of all micro-batches; the last one's loss on the last stage."""
        self.stage.on_phase = on_phase
        given: tuple[Tensor, ...] = (self.tokens,) if self.ranks.is_first_stage else ()
        if not self.ranks.is_last_stage:
            self.schedule.step(*given, **self._more)
            return None
        losses: list[Tensor] = []
        more = {"labels": self.tokens, "target": self.tokens, "losses": losses, **self._more}
        self.schedule.step(*given, **more)
        return losses[-1].detach() if keep_loss else None

    def held_tensors(self) -> list[Tensor]:
        """The micro-batches' ids, and the buffers for streams and their gradients."""
        infos = [*self.stage.args_recv_info.values(), *self.stage.grad_recv_info.values()]
        buffers = [getattr(info, "buffer", None) for entry in infos for info in entry]
        tensors = [b for b in buffers if isinstance(b, Tensor)]
        return [self.tokens, *tensors, *(t.grad for t in tensors if t.grad is not None)]


class _Stage(PipelineStage):
    """A stage that says when each micro-batch's forward and backward begin."""

    on_phase: Callable[[str], None] = staticmethod(lambda name: None)

    def forward_one_chunk(self, *args: Any, **kwargs: Any) -> Any:
        """Forward of one micro-batch."""
        self.on_phase("forward")
        return super().forward_one_chunk(*args, **kwargs)

    def backward_one_chunk(self, *args: Any, **kwargs: Any) -> Any:
        """Backward of one micro-batch."""
        self.on_phase("backward")
        return super().backward_one_chunk(*args, **kwargs)
