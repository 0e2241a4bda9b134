"""Plan: a resolved setup as kernels, block kinds, dims, an optimizer plan and a layout.

Plans are made by `make_plan.py`; strategies and all that reads plans stand between the two.
"""

from __future__ import annotations

from typing import NamedTuple

from memcalc.engine.blocks.layer_limits import standing_tables
from memcalc.engine.kernels import BlockKind, Kernels
from memcalc.engine.optimizer import OptimizerPlan
from memcalc.engine.parallel.strategy import Batch, Strategy, Whole
from memcalc.engine.sizes import Size
from memcalc.engine.structure import Beside, Run, Structure, structure_of
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.training import ResolvedSetup


class Plan(NamedTuple):
    """Everything the engine needs for one estimate."""

    resolved: ResolvedSetup
    kernels: Kernels
    kinds: tuple[BlockKind, ...]
    values: dict[str, int]
    dims: dict[str, Size]
    optimizer: OptimizerPlan
    notes: tuple[str, ...]
    parallel: ParallelPlan = ParallelPlan()
    strategy: Strategy = Whole()
    ends: tuple[bool, bool] = (True, True)  # whether embedding, and final norm and head, are here
    expandable: bool = False  # the allocator's segments can grow
    undivided: Plan | None = None  # the whole model on one GPU, where this is a rank's part

    @property
    def whole(self) -> Plan:
        """The plan before it was divided."""
        return self.undivided or self

    @property
    def config(self) -> ModelConfig:
        return self.resolved.config

    @property
    def table_bytes(self) -> int:
        """What some models' code keeps for the whole run: a rotary table, litgpt's logits too."""
        traits = self.kernels.traits
        return standing_tables(self.config, self.resolved.seq_len, self.values, traits)

    @property
    def keeps_gradients(self) -> bool:
        """Whether gradients already exist when the last micro-batch of a step begins."""
        setup = self.resolved.setup
        several = self.resolved.grad_accum_steps > 1 or not setup.set_to_none
        return several or self.strategy.persistent_gradients

    @property
    def peak_batch(self) -> Batch:
        """The micro-batch of a step in which most is alive: the second, or the only one."""
        return self.peak_batches[0]

    @property
    def peak_batches(self) -> tuple[Batch, ...]:
        """Those of which one has most alive: `peak_batch`, and the first where only the second sums.

        A second one that sums over the ranks gives back the first's gradients as it goes.
        """
        batches = self.strategy.micro_batches(self)
        if len(batches) == 2 and batches[1].reduces and not batches[0].reduces:
            return batches[::-1]
        return batches[1:2] or batches

    def structure(
        self, has_gradients: bool, reduces: bool = True, split: bool = False
    ) -> tuple[Structure, tuple[Run, ...]]:
        """The traced structure of one micro-batch and its runs.

        reduces: gradients over the ranks; split: backward in two halves.
        """
        strategy = self.strategy
        beside = Beside(strategy.injectors(self), self.ends, strategy.depth, reduces, split)
        return structure_of(self.config, self.kernels, self.kinds, self.dims, has_gradients, beside)
