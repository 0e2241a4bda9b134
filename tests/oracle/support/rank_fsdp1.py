"""What one rank of many keeps in memory under FSDP1, in one process and without a GPU.

torch.distributed.fsdp.FullyShardedDataParallel wraps each block and the rest of the harness's decoder on
torch's fake process group, over tensors without data, as rank.py does for FSDP2. Traps met:

- FSDP1 wants an accelerator, but takes "cpu" as device_id: torch.cpu's streams, on which it frees by
  `resize_` as on a GPU (torch/distributed/utils.py).
- Its check whether a user changed a parameter reads addresses, which fake storages have not: it is off
  (FSDP_SKIP_WRITEBACK_CHECK). Events and the rate limiter's waits take no memory.
- A mesh is made before the fake mode.
Checked by: oracle/test_fsdp1.py.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    BackwardPrefetch,
    FullyShardedDataParallel,
    MixedPrecision,
    ShardingStrategy,
    _flat_param,
    _runtime_utils,
)
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.testing._internal.distributed.fake_pg import FakeStore

from memcalc.engine.make_plan import plan_of
from memcalc.engine.parallel.data.fsdp1 import fsdp1_of
from memcalc.engine.plan import Plan
from memcalc.harness.model.block import Block
from memcalc.harness.model.casting import DTYPES
from memcalc.harness.optimizers import make_optimizers
from memcalc.harness.ranks.layout import Layout
from memcalc.harness.step import TrainingStep
from memcalc.harness.watch.scopes import layer, op
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.stacks import load_stack
from memcalc.inputs.training import TrainingSetup
from tests.oracle.support.rank import CPU, WARM_UP, RankTrace, without_data
from tests.oracle.support.rank_tracker import tracked

_PREFETCH = {
    "pre": BackwardPrefetch.BACKWARD_PRE, "post": BackwardPrefetch.BACKWARD_POST, "none": None,
}  # fmt: skip
#: Methods of FSDP1's handle, and the ledger's operator of what they allocate.
_STAGES = {
    "_use_low_precision_shard": "all_gather",
    "_alloc_padded_unsharded_flat_param": "unshard",
}


@dataclass(frozen=True)
class Wrapped:
    """How FSDP1 wraps. zero: 3 FULL_SHARD, 2 SHARD_GRAD_OP; shard: ranks of a group (HYBRID_SHARD).

    reduce: dtype gradients are reduced in, "compute" or "fp32".
    """

    config: ModelConfig
    setup: TrainingSetup
    dp: int
    zero: int = 3
    shard: int | None = None
    reduce: str = "compute"
    prefetch: str = "pre"
    ahead: bool = False
    gathers: str = "compute"  # stored: parameters are gathered as they are, and cast by autocast

    def plan(self) -> Plan:
        """The engine's plan of its first rank."""
        setup = replace(self.setup, stack="fsdp1")
        layout = ParallelPlan(dp=self.dp, zero=self.zero, shard=self.shard)
        plan = plan_of(self.config, setup, {"watched": True}, layout)
        stack = load_stack("fsdp1")
        choices = {
            "reduce": self.reduce, "backward_prefetch": self.prefetch,
            "forward_prefetch": self.ahead, "gathers": self.gathers,
        }  # fmt: skip
        stack = stack._replace(parallel={**stack.parallel, **choices})
        given = plan._replace(kernels=plan.whole.kernels)
        strategy = fsdp1_of(given, stack)
        # the harness spells casts out and caches those of views too, as autocast does not
        kernels = strategy.kernels(given.kernels)._replace(caches_casts=True)
        return plan._replace(strategy=strategy, kernels=kernels)

    @property
    def strategy(self) -> ShardingStrategy:
        """PyTorch's name of it."""
        if self.shard is not None:
            full = self.zero == 3
            return ShardingStrategy.HYBRID_SHARD if full else ShardingStrategy._HYBRID_SHARD_ZERO2
        return ShardingStrategy.FULL_SHARD if self.zero == 3 else ShardingStrategy.SHARD_GRAD_OP

    def policy(self, plan: Plan) -> MixedPrecision | None:
        """Casts of parameters and of gradients."""
        kernels = plan.kernels
        if kernels.param_dtype == kernels.compute_dtype:
            return None
        dtype = DTYPES[kernels.compute_dtype]
        reduce = dtype if self.reduce == "compute" else DTYPES[self.reduce]
        gathered = DTYPES[kernels.param_dtype] if self.gathers == "stored" else dtype
        return MixedPrecision(param_dtype=gathered, reduce_dtype=reduce, buffer_dtype=dtype)


class Fsdp1Step(TrainingStep):
    """The step of a rank under FSDP1. plan: the undivided one."""

    def __init__(self, plan: Plan, wrapped: Wrapped, mesh: Any) -> None:
        autocast = plan.kernels.autocast and wrapped.gathers == "stored"
        super().__init__(plan._replace(kernels=plan.kernels._replace(autocast=autocast)), CPU)
        model: Any = FullyShardedDataParallel(
            self.model,
            device_mesh=mesh,
            sharding_strategy=wrapped.strategy,
            auto_wrap_policy=ModuleWrapPolicy({Block}),
            mixed_precision=wrapped.policy(plan),
            backward_prefetch=_PREFETCH[wrapped.prefetch],
            forward_prefetch=wrapped.ahead,
            device_id=CPU,
            use_orig_params=True,
            limit_all_gathers=True,
        )
        self.model = model
        self.optimizers = make_optimizers(plan.optimizer, model)


def run_fsdp1(wrapped: Wrapped) -> RankTrace:
    """The third step of the first rank."""
    plan = plan_of(wrapped.config, wrapped.setup, {"watched": True})
    with _ranks(wrapped) as mesh, without_data(), _named_stages(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        step = Fsdp1Step(plan, wrapped, mesh)
        for _ in range(WARM_UP):
            step.run()
        gc.collect()
        gc.disable()
        try:
            found, events = tracked(step)
        finally:
            gc.enable()
    return RankTrace(plan, Layout(dp=wrapped.dp), 0, found, events)


@contextmanager
def _ranks(wrapped: Wrapped) -> Iterator[Any]:
    """A mesh of a fake process group: of one dim, or of groups and their ranks."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=wrapped.dp)
    shard = wrapped.shard
    shape = (wrapped.dp,) if shard is None else (wrapped.dp // shard, shard)
    names = ("shard",) if shard is None else ("replicate", "shard")
    try:
        yield init_device_mesh("cpu", shape, mesh_dim_names=names)
    finally:
        dist.destroy_process_group()


@contextmanager
def _named_stages() -> Iterator[None]:
    """Context: what FSDP1 allocates is named as the ledger names it."""
    with ExitStack() as stack:
        handle = _flat_param.FlatParamHandle
        for method, stage in _STAGES.items():
            stack.enter_context(
                mock.patch.object(handle, method, _within(getattr(handle, method), stage))
            )
        hook = _within(_runtime_utils._post_backward_hook, "reduce_scatter")
        stack.enter_context(mock.patch.object(_runtime_utils, "_post_backward_hook", hook))
        stack.enter_context(
            mock.patch.dict("os.environ", {_flat_param._FSDP_SKIP_WRITEBACK_CHECK: "1"})
        )
        yield


def _within(own: Any, stage: str) -> Any:
    """A method of a handle, or a hook that is given one, under an operator of the handle's block."""

    def method(*args: Any, **kwargs: Any) -> Any:
        index = _block(next(one for one in args if isinstance(one, _flat_param.FlatParamHandle)))
        with nullcontext() if index is None else layer(index), op(stage):
            return own(*args, **kwargs)

    return method


def _block(handle: Any) -> int | None:
    """The block a flat parameter is of; None for the rest."""
    module = handle._fully_sharded_module
    return module.index if isinstance(module, Block) else None
