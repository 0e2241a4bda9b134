"""A rank of several that fine-tunes a transformers model with PEFT, on tensors without data.

As rank.py: torch's fake process group, fake tensors ("cpu" without data), two steps before the tracked
one. transformers' own code stands in for the harness's decoder; fully_shard of every decoder layer and of
the rest, or DDP, are PyTorch's own, and AdamW steps what trains.
Checked by: oracle/test_peft_ranks.py.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import peft
import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup

from memcalc.engine.make_plan import plan_of
from memcalc.engine.memory import step_memory
from memcalc.engine.parallel.data.ddp import Ddp
from memcalc.engine.plan import Plan
from memcalc.harness.ranks import rank_step
from memcalc.harness.ranks.layout import Layout
from memcalc.harness.step import OnPhase, TrainingStep
from memcalc.harness.watch.scopes import op
from memcalc.inputs.hf import model_from_config
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.peft import PeftSetup
from memcalc.inputs.training import TrainingSetup
from tests.oracle.support.hf import _PACKED_SEQUENCES, _one_byte_dropout_masks, _open_scopes
from tests.oracle.support.hf_encoders import inputs_of
from tests.oracle.support.peft_models import PeftRun, _model, encodes
from tests.oracle.support.rank import CPU, RankTrace, _traced, fake_ranks, without_data

_KEEPS_FEWER = "_to_sharded_post_forward"
_cut_again = FSDPParamGroup._to_sharded_post_forward
#: Precisions by the base's dtype, without and with a policy that casts what is gathered.
_PRECISIONS = {("fp32", False): "fp32", ("bf16", False): "bf16", ("fp32", True): "bf16-mixed"}


@dataclass(frozen=True, kw_only=True)
class TunedRank:
    """A run. method: PEFT's config, or a function that freezes; setup: the same in memcalc's words.

    mixed: fully_shard casts what it gathers to bf16. views: DDP's gradient_as_bucket_view.
    """

    config: dict[str, Any]
    method: Any
    setup: PeftSetup | None
    layout: Layout
    base: str = "bf16"
    mixed: bool = False
    views: bool = False
    accum: int = 1
    clip: bool = False
    checkpoint: str = "none"
    batch: int = 2
    seq: int = 32
    target: int = 0  # tokens of an encoder-decoder's decoder
    attention: str = "flash"

    @property
    def training(self) -> TrainingSetup:
        """The setup the engine is given."""
        peft_setup = self.setup
        return TrainingSetup(
            stack="hf",
            seq_len=self.seq,
            micro_batch_size=self.batch,
            grad_accum_steps=self.accum,
            grad_clip=self.clip,
            precision=_PRECISIONS[self.base, self.mixed],
            recompute="none" if self.checkpoint == "none" else "full",
            reentrant=self.checkpoint == "reentrant",
            target_seq_len=self.target or None,
            attention=self.attention,
            peft=peft_setup,
        )

    def plan(self) -> Plan:
        """The engine's plan of the first rank."""
        layout = self.layout
        parallel = ParallelPlan(
            dp=layout.dp, fsdp=layout.fsdp, reshard=layout.reshard, shard=layout.shard
        )
        model = model_from_config(self.config, self.config["model_type"])
        plan = plan_of(model, self.training, {"watched": True}, parallel)
        if isinstance(plan.strategy, Ddp):
            plan = plan._replace(strategy=replace(plan.strategy, views=self.views))
        return plan

    def run(self) -> tuple[RankTrace, int]:
        """PyTorch's own step of the first rank, and bytes of buffers, which the engine leaves out."""
        model = model_from_config(self.config, self.config["model_type"])
        whole = plan_of(model, self.training, {"watched": True})
        with fake_ranks(self.layout) as ranks, _meshes(self.layout) as mesh, _no_data(self.views):
            step = TunedStep(self, whole, mesh)
            step.ranks = ranks
            found = _traced(step, whole, 0)[0]
            return found, sum(buffer.nbytes for buffer in step.model.buffers())

    def with_model(self, use: Callable[[Any], Any]) -> Any:
        """What a function makes of the first rank's model."""
        config = model_from_config(self.config, self.config["model_type"])
        whole = plan_of(config, self.training, {"watched": True})
        with fake_ranks(self.layout), _meshes(self.layout) as mesh, _no_data(self.views):
            return use(TunedStep(self, whole, mesh).model)

    def differences(self) -> dict[str, tuple[Any, Any]]:
        """States, saved bytes and the peak of each phase: {name: (engine, PyTorch)} where they differ."""
        ours, (trace, buffers) = step_memory(self.plan()), self.run()
        held, theirs, phases = ours.states, trace.bytes, dict(ours.phases)
        if "loss" not in theirs.phases:  # T5's is a line of its forward
            phases["forward"] = max(phases["forward"], phases.pop("loss"))
        pairs: dict[str, tuple[Any, Any]] = {
            "parameters": (held.parameter_bytes, theirs.states["parameters"] - buffers),
            "gradients": (held.gradient_bytes, theirs.states["gradients"]),
            "moments": (held.optimizer_bytes, theirs.states["optimizer"]),
            "saved": (ours.saved_bytes, theirs.saved),
            **{name: (size, theirs.phases[name] - buffers) for name, size in phases.items()},
        }
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


class TunedStep(TrainingStep):
    """The step of a rank: its rows through the wrapped model, the optimizer over what trains."""

    def __init__(self, run: TunedRank, plan: Plan, mesh: Any) -> None:
        self.plan, self.device = plan, CPU
        one = PeftRun(
            method=run.method,
            base=run.base,
            batch=run.batch,
            seq=run.seq,
            checkpoint=run.checkpoint,
            attention=run.attention,
            target=run.target,
            widens=run.setup is None or run.setup.dtype is None,
        )
        self.model: Any = _model(run.config, one)
        inner = self.model
        inner = inner.base_model.model if isinstance(inner, peft.PeftModel) else inner
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.called = self.model
        if run.layout.fsdp:
            self._shard(run, inner, mesh)
            trained = [p for p in self.model.parameters() if p.requires_grad]
        _open_scopes(inner)
        self.optimizers = [torch.optim.AdamW(trained, foreach=True)]
        if not run.layout.fsdp and run.layout.dp > 1:
            self.called = rank_step.DistributedDataParallel(
                self.model, gradient_as_bucket_view=run.views
            )
        self.inputs = inputs_of(run.config, (run.batch, run.seq, run.target))
        self.ids, self.labels = self.inputs["input_ids"], self.inputs["labels"]
        if not encodes(run.config):
            self.inputs["use_cache"] = False
        self._buckets: list[Tensor] = []

    def _shard(self, run: TunedRank, inner: Any, mesh: Any) -> None:
        options: dict[str, Any] = {"mesh": mesh}
        if run.mixed:
            options["mp_policy"] = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
        reshard = (
            {} if run.layout.reshard is None else {"reshard_after_forward": run.layout.reshard}
        )
        for block in _blocks_of(inner):
            fully_shard(block, **options, **reshard)
        fully_shard(self.model, **options)

    def micro_batches(self, on_phase: OnPhase, keep_loss: bool) -> Tensor | None:
        """Every micro-batch; DDP adds up the gradients of all but the last by itself."""
        accum = self.plan.resolved.grad_accum_steps
        for number in range(accum):
            if self.called is not self.model and number < accum - 1:
                with self.called.no_sync():
                    self.micro_batch(on_phase, keep_loss)
            else:
                self.micro_batch(on_phase, keep_loss)
        if self.called is not self.model:
            self._buckets = rank_step._one_of_each_storage(self.model)
        return None

    def micro_batch(self, on_phase: OnPhase, keep_loss: bool) -> Tensor | None:
        """Forward, loss and backward of this rank's rows."""
        on_phase("forward")
        loss = self.called(**self.inputs).loss
        on_phase("backward")
        loss.backward()
        return None

    def clip_gradients(self) -> None:
        """Scale the gradients there are down to a norm of 1."""
        trained = [p for p in self.model.parameters() if p.requires_grad]
        torch.nn.utils.clip_grad_norm_(trained, 1.0)

    def other_tensors(self) -> list[Tensor]:
        """DDP's buckets."""
        return self._buckets


def _blocks_of(model: Any) -> list[Any]:
    """The modules that are groups of their own."""
    if hasattr(model, "encoder"):
        return [*model.encoder.block, *model.decoder.block]
    return list(model.transformer.h if hasattr(model, "transformer") else model.model.layers)


@contextmanager
def _meshes(layout: Layout) -> Iterator[Any]:
    """The mesh of fully_shard, made before the fake mode."""
    if not layout.fsdp:
        yield None
        return
    if layout.shard is None:
        yield init_device_mesh("cpu", (layout.dp,))
        return
    shape = (layout.dp // layout.shard, layout.shard)
    yield init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard"))


def _keeps_fewer(group: Any) -> None:
    """What fewer ranks keep after forward, by the ledger's name of it."""
    with op("reshard"):
        _cut_again(group)


@contextmanager
def _no_data(views: bool) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(without_data(views))
        stack.enter_context(_one_byte_dropout_masks())
        stack.enter_context(mock.patch(_PACKED_SEQUENCES, lambda position_ids: None))
        stack.enter_context(mock.patch.object(FSDPParamGroup, _KEEPS_FEWER, _keeps_fewer))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        yield
        gc.collect()
