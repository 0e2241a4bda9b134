"""FSDP2 of a model whose experts are spread over ep ranks: experts have a sharding group of their own.

A block is one fully_shard with two groups: its experts, over the N / ep ranks that have the same ones,
and the rest over all N. Both are gathered before the block, the rest first; in backward the next block's
are gathered after both, experts first; experts are reduced first, and the inputs of both reductions live
until the next block's. Where there are more ranks than experts an expert's rows are cut, not the experts:
a gather then takes a second copy of each parameter, and a reduction a copy of each gradient.
Source: torchtitan, torchtitan/models/llama4/parallelize.py (shard_placement_fn); PyTorch 2.13,
torch/distributed/fsdp/_fully_shard (_fsdp_param_group.py, _fsdp_collectives.py).
Checked by: oracle/test_expert_parallel.py, event for event.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, NamedTuple

from memcalc.engine.injectors import Hooks, Injector
from memcalc.engine.parallel.fsdp2 import Fsdp2, part_shape
from memcalc.engine.parallel.fsdp2_timeline import Fsdp2Timeline, Group, _Live
from memcalc.engine.parallel.strategy import held
from memcalc.engine.sizes import ZERO
from memcalc.engine.tensors import Shape, Tensor

if TYPE_CHECKING:
    from memcalc.engine.build import Build
    from memcalc.engine.plan import Plan

#: What parameters of experts are called.
_EXPERT = ".expert_"


def is_expert(name: str) -> bool:
    """Whether a parameter of this name belongs to experts."""
    return _EXPERT in name


@dataclass(frozen=True)
class ExpertFsdp2(Fsdp2):
    """The strategy with experts of their own. expert_ranks: ranks that have the same; by_rows: of what
    experts' weights are cut."""

    expert_ranks: int = 1
    by_rows: bool = False

    def injectors(self, plan: Plan) -> tuple[Injector, ...]:
        """The gathers and reductions of both kinds of groups."""
        (timeline,) = super().injectors(plan)
        assert isinstance(timeline, Fsdp2Timeline)
        experts = timeline._replace(
            root=Group(-1, ()),
            blocks=tuple(_experts_of(group, self.by_rows) for group in timeline.blocks),
            ranks=self.expert_ranks,
        )
        rest = timeline._replace(blocks=tuple(_rest_of(group) for group in timeline.blocks))
        return (ExpertTimeline(rest, experts, self.by_rows),)

    def parameter(self, leaf: Tensor) -> Tensor:
        """This rank's part, padded."""
        if not is_expert(leaf.name):
            return super().parameter(leaf)
        if self.by_rows:
            experts, rows, *more = leaf.shape
            return held(leaf, (experts, rows.over(self.expert_ranks), *more), self.stored)
        return held(leaf, part_shape(leaf.shape, self.expert_ranks), self.stored)


def with_experts(strategy: Fsdp2, ep: int, experts: int) -> ExpertFsdp2:
    """The strategy of ranks that share the experts of a model."""
    stated = {field.name: getattr(strategy, field.name) for field in fields(Fsdp2)}
    ranks = strategy.ranks
    return ExpertFsdp2(**stated, expert_ranks=ranks // ep, by_rows=ranks > experts)


def _rest_of(group: Group) -> Group:
    return Group(group.block, tuple(one for one in group.parameters if not is_expert(one[0])))


def _experts_of(group: Group, by_rows: bool) -> Group:
    """The experts of a block; by_rows: shapes begin with the dim that is cut."""
    found = [(name, shape) for name, shape in group.parameters if is_expert(name)]
    return Group(group.block, tuple((name, _turned(shape, by_rows)) for name, shape in found))


def _turned(shape: Shape, by_rows: bool) -> Shape:
    return (shape[1], shape[0], *shape[2:]) if by_rows else shape


class ExpertTimeline(NamedTuple):
    """The injector of one rank: the timelines of its experts and of the rest."""

    rest: Fsdp2Timeline
    experts: Fsdp2Timeline
    by_rows: bool

    def start(self, build: Build) -> Hooks:
        """Hooks over a state of its own."""
        live = _Both(_Live(self.rest, build), _ExpertsLive(self.experts, build, self.by_rows))
        return Hooks(live.before_block, live.after_block, None, live.phase, takes_gradients=True)


class _ExpertsLive(_Live):
    """The experts' groups; by_rows: copies where weights are cut along their second dim."""

    def __init__(self, plan: Fsdp2Timeline, build: Build, by_rows: bool) -> None:
        super().__init__(plan, build)
        self.turns = by_rows and plan.ranks > 1

    def _copy_out(self, group: Group, defer: bool) -> None:
        if not self.turns or self.held[group.block].whole:
            super()._copy_out(group, defer)
            return
        state, turned = self.held[group.block], []
        with self._within("unshard", group):
            for size in group.padded(self.plan.ranks):
                whole = (size * self.plan.ranks,)
                state.whole.append(self.tape.empty("unsharded", whole, self.plan.compute))
                turned.append(self.tape.empty("empty_like", whole, self.plan.compute))
            del turned
        if defer:
            self.previous = state.gathered
        state.gathered = None

    def _reduce(self, group: Group) -> None:
        """As of any group; cut along rows, each gradient is copied first, and the last one kept on."""
        if not self.turns:
            super()._reduce(group)
            return
        sizes, gradients = self._gradients(group)
        self.held[group.block].whole.clear()
        self.reduced = None
        plan, copies = self.plan, []
        total = sum(sizes, ZERO)
        with self._within("reduce_scatter", group):
            last = gradients[-1]
            for number, size in enumerate(sizes):
                copies.append(self.tape.empty("cat", (size * plan.ranks,), plan.compute))
                if number:  # PyTorch's loop lets go of a gradient one round later
                    del gradients[0]
            reduced = self.tape.empty("reduce_scatter_input", (total * plan.ranks,), plan.stored)
            copies.clear()
            output = self.tape.empty("reduce_scatter_output", (total,), plan.stored)
            gradients.clear()
            del last
        if not self.build.has_gradients:
            self.tape.gradients.append(output)
        self.reduced = reduced


class _Both:
    """Both timelines of one trace; they share what PyTorch keeps once for all groups."""

    def __init__(self, rest: _Live, experts: _Live) -> None:
        self.rest, self.experts = rest, experts

    def phase(self, name: str) -> None:
        """The root as ever; backward begins with the last block's last group."""
        if name == "backward":
            self._gather_last(len(self.rest.plan.blocks) - 1)
            return
        if name in ("forward end", "end"):
            self.experts.previous = self.experts.reduced = None
        self.rest.phase(name)

    def before_block(self, block: int, direction: str) -> None:
        """Gather both groups, the rest first; in backward then those of the block that comes next."""
        rest, experts = self.rest, self.experts
        defer = direction == "forward"
        rest._gather(rest.plan.blocks[block])
        rest._copy_out(rest.plan.blocks[block], defer)
        if defer:
            experts.previous = None
        if self._has_experts(block):
            experts._gather(experts.plan.blocks[block])
            experts._copy_out(experts.plan.blocks[block], defer)
            if defer:
                rest.previous = None
        if defer or not block:
            return
        self._gather_last(block - 1)
        if self._has_experts(block) and self._has_experts(block - 1):
            rest._gather(rest.plan.blocks[block - 1])

    def _gather_last(self, block: int) -> None:
        """A block's last group: its experts, where it has any."""
        live = self.experts if self._has_experts(block) else self.rest
        live._gather(live.plan.blocks[block])

    def _has_experts(self, block: int) -> bool:
        return bool(self.experts.plan.blocks[block].parameters)

    def after_block(self, block: int, direction: str) -> None:
        """Free both groups; in backward reduce them, experts first."""
        if direction == "backward":
            self.rest.reduced = self.experts.reduced = None
        else:
            self.rest.after_block(block, direction)
        if self._has_experts(block):
            self.experts.after_block(block, direction)
        if direction == "backward":
            self.rest.after_block(block, direction)
