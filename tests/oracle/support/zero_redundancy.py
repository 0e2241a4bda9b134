"""Optimizer states split over DDP's ranks as PyTorch's own ZeroRedundancyOptimizer splits them.

The harness has no such optimizer: inside `split_states` a rank's step is made with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer

from memcalc.engine.optimizer import OptimizerPlan
from memcalc.harness.model.decoder import Decoder
from memcalc.harness.ranks import rank_step
from tests.oracle.support.rank import RankTrace, fake_ranks
from tests.oracle.support.rank_draw import RankSetup

_IMPLS: dict[str, Any] = {
    "foreach": {"foreach": True}, "fused": {"fused": True}, "loop": {"foreach": False},
}  # fmt: skip


@contextmanager
def split_states() -> Iterator[None]:
    """Context: AdamW of a rank's part of the parameters, whose results it sends to the others."""

    def make(plan: OptimizerPlan, model: nn.Module) -> list[ZeroRedundancyOptimizer]:
        kind = torch.optim.AdamW
        made = ZeroRedundancyOptimizer(model.parameters(), kind, lr=1e-3, **_IMPLS[plan.impl])
        made.state = made.optim.state  # what the tracker reads the states' bytes from
        return [made]

    with mock.patch.object(rank_step, "make_optimizers", make):
        yield


def run_split(setup: RankSetup) -> RankTrace:
    """The step of one rank on the fake process group."""
    with split_states():
        return setup.run()


def elements_by_rank(setup: RankSetup) -> list[int]:
    """Elements of the parameters that each rank steps."""
    plan = setup.plan()
    with fake_ranks(setup.layout), torch.device("meta"):
        model = Decoder(plan.config, plan.kernels, plan.kinds)
        optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.AdamW)
        parts = optimizer._partition_parameters()
    return [sum(p.numel() for group in part for p in group["params"]) for part in parts]
