"""FSDP2 on a pipeline's rank: parameters stay gathered, gradients whole, until the step's end.

A stage gathers every group in its first forward and keeps it; the gradients of all micro-batches are
summed whole, in fp32 where parts are fp32, and reduced group by group, the root's first, when the last
backward is over. So FSDP2 saves states beside a pipeline, not gradients or gathered parameters.
Source: PyTorch 2.13, torch/distributed/pipelining/stage.py (backward_maybe_with_nosync,
perform_reduce_grad), torch/distributed/fsdp/_fully_shard/_fsdp_param_group.py (post_backward).
Checked by: oracle/test_pipeline_data_parallel.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from memcalc.engine.injectors import Hooks, Injector
from memcalc.engine.parallel.data.fsdp2 import Fsdp2, fsdp2_of
from memcalc.engine.parallel.data.fsdp2_timeline import (
    Fsdp2Timeline,
    Group,
    _Live,
    _placed_as,
)
from memcalc.engine.parallel.strategy import Batch
from memcalc.engine.sizes import Size
from memcalc.engine.states import block_of
from memcalc.engine.tensors import Shape, Tensor

if TYPE_CHECKING:
    from memcalc.engine.build import Build
    from memcalc.engine.plan import Plan


#: More blocks than any model has.
ALL_BLOCKS: Final = 1 << 16


@dataclass(frozen=True)
class Fsdp2Stages(Fsdp2):
    """drops: zero_grad drops the parts' gradients (set_to_none)."""

    drops: bool = True

    @property
    def depth(self) -> int:
        """All blocks: what each gathered goes after the last block's backward."""
        return ALL_BLOCKS

    def injectors(self, plan: Plan) -> tuple[Injector, ...]:
        """The gathers of the first micro-batch, sums of gradients, reductions after the last."""
        (timeline,) = super().injectors(plan)
        assert isinstance(timeline, Fsdp2Timeline)
        return (StagesTimeline(timeline, self.drops),)

    def micro_batches(self, plan: Plan) -> tuple[Batch, ...]:
        """The first gathers, the last reduces."""
        batches = plan.resolved.grad_accum_steps
        if batches == 1:
            return (Batch(False, True),)
        middle = (Batch(True, False),) if batches > 2 else ()
        return (Batch(False, False), *middle, Batch(True, True))


def fsdp2_stages_of(plan: Plan) -> Fsdp2Stages:
    """FSDP2 beside stages as a plan's layout states it."""
    plain = fsdp2_of(plan)
    return Fsdp2Stages(
        ranks=plain.ranks,
        kept_on=1,
        replicas=plain.replicas,
        stored=plain.stored,
        compute=plain.compute,
        drops=plan.resolved.setup.set_to_none,
    )


class StagesTimeline(NamedTuple):
    """The injector: FSDP2's groups, and whether the parts' gradients are dropped between steps."""

    groups: Fsdp2Timeline
    drops: bool

    def start(self, build: Build) -> Hooks:
        """Hooks over a state of its own."""
        live = _Stages(self, build)
        return Hooks(live.before_block, live.after_block, None, live.phase, takes_gradients=True)


class _Stages(_Live):
    """One micro-batch: what is gathered and summed comes from the first, and goes with the last."""

    def __init__(self, plan: StagesTimeline, build: Build) -> None:
        super().__init__(plan.groups, build)
        self.drops = plan.drops
        self.sums: dict[str, Tensor] = {}
        groups = (self.plan.root, *self.plan.blocks)
        if build.has_gradients:
            for group in groups:
                with self._within("unshard", group):
                    self.held[group.block].whole = [
                        self._of_earlier("unsharded", (size * self.plan.ranks,), self.plan.compute)
                        for size in group.padded(self.plan.ranks)
                    ]

    def _of_earlier(self, name: str, shape: tuple[Size, ...], dtype: str) -> Tensor:
        """What an earlier micro-batch made: it goes in this one if this one reduces."""
        tape = self.tape
        if self.build.reduces:
            return tape.earlier_made(name, shape, dtype)
        return tape.external(shape, dtype)

    def phase(self, name: str) -> None:
        """At the end the root's gradients are summed too; after the last, all groups are reduced."""
        root = self.plan.root
        if name == "backward":
            self._earlier_sums()
        elif name == "end":
            self._sum(root)
            for group in (root, *self.plan.blocks) if self.build.reduces else ():
                if group.parameters:
                    self._reduce(group)
            self.summed.clear()
            self.reduced = None
            self._keep()
        elif name != "forward" or not self.held[root.block].whole:
            super().phase(name)

    def before_block(self, block: int, direction: str) -> None:
        """Gather what the first forward finds in parts."""
        if direction == "forward" and not self.held[block].whole:
            super().before_block(block, direction)

    def after_block(self, block: int, direction: str) -> None:
        """Add up the gradients of a block's backward."""
        if direction == "backward":
            self._sum(self.plan.blocks[block])

    def _earlier_sums(self) -> None:
        """The sums of earlier micro-batches: on the parameters, or beside them where they are wider."""
        if not self.build.has_gradients:
            return
        tape, before = self.tape, (self.tape.op, self.tape.block)
        for leaf in tape.leaves.values():
            tape.at("gradient_sum", block_of(leaf))
            made = self._of_earlier("gradient", _summed_shape(leaf), self.plan.stored)
            if self.plan.casts:
                self.sums[leaf.name] = made
            else:
                leaf.grad = made
        tape.at(*before)

    def _sum(self, group: Group) -> None:
        """A group's gradients, widened in the first micro-batch, added in place in later ones."""
        if not self.plan.casts:
            return
        with self._within("gradient_sum", group):
            for name, _ in group.parameters:
                leaf = self.tape.leaves[name]
                if leaf.grad is not None and name not in self.sums:
                    shape = _summed_shape(leaf)
                    self.sums[name] = self.tape.empty("_to_copy", shape, self.plan.stored)
                leaf.grad = None

    def _gradients(self, group: Group) -> tuple[list[Size], list[Tensor]]:
        """The sums of a group, taken away from where they are."""
        if not self.plan.casts:
            return super()._gradients(group)
        sizes, gradients = [], []
        for (name, _), size in zip(group.parameters, group.padded(self.plan.ranks), strict=True):
            if name in self.sums:
                sizes.append(size)
                with self._within("reduce_scatter", group):
                    gradients.append(_placed_as(self.tape.leaves[name], self.sums[name]))
                del self.sums[name]
        return sizes, gradients

    def keeps_output(self) -> bool:
        """As told: the first reduction of a step makes the gradients."""
        return self.drops

    def _keep(self) -> None:
        """What the next micro-batch finds outlives this one."""
        if self.build.reduces:
            return
        self.tape.gradients += self.sums.values()
        self.build.standing.append([one for held in self.held.values() for one in held.whole])


def _summed_shape(leaf: Tensor) -> Shape:
    """A whole gradient's shape: the parameter's, but of an embedding that tp ranks share all rows."""
    return (leaf.placed and leaf.placed.gradient) or leaf.shape
