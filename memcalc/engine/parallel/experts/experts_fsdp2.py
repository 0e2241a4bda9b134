"""FSDP2 of a model whose experts are spread over ep ranks: experts have a sharding group of their own.

A block is one fully_shard with two groups: its experts, over the N / ep ranks that have the same ones,
and the rest over all N. Both are gathered before the block, the rest first; in backward the next block's
are gathered after both, experts first; experts are reduced first, and the inputs of both reductions live
until the next block's. Where there are more ranks than experts an expert's rows are cut, not the experts
(experts_rows.py), also where every rank has all experts; these are then no group of their own.
Source: torchtitan, torchtitan/models/llama4/parallelize.py (shard_placement_fn); PyTorch 2.13,
torch/distributed/fsdp/_fully_shard (_fsdp_param_group.py, _fsdp_collectives.py).
Checked by: oracle/test_expert_parallel.py, event for event.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, NamedTuple

from memcalc.engine.injectors import Hooks, Injector
from memcalc.engine.parallel.data.fsdp2 import Fsdp2, part_shape
from memcalc.engine.parallel.data.fsdp2_timeline import Fsdp2Timeline, Group, _Live
from memcalc.engine.parallel.experts.experts_rows import RowsLive, rows_first
from memcalc.engine.parallel.strategy import held
from memcalc.engine.states import names_expert
from memcalc.engine.tensors import Tensor

if TYPE_CHECKING:
    from memcalc.engine.build import Build
    from memcalc.engine.plan import Plan


@dataclass(frozen=True)
class ExpertFsdp2(Fsdp2):
    """The strategy with experts cut in a way of their own.

    expert_ranks: ranks that have the same experts; by_rows: along which dim weights (E, out, in) are cut.
    """

    expert_ranks: int = 1
    by_rows: bool = False

    @property
    def are_apart(self) -> bool:
        """Whether experts are a group of their own."""
        return self.expert_ranks < self.ranks

    def injectors(self, plan: Plan) -> tuple[Injector, ...]:
        """The gathers and reductions of both kinds of groups."""
        (timeline,) = super().injectors(plan)
        assert isinstance(timeline, Fsdp2Timeline)
        if self.by_rows:
            timeline = timeline._replace(blocks=tuple(map(rows_first, timeline.blocks)))
        if not self.are_apart:
            return (ExpertTimeline(timeline, None, self.by_rows),)
        experts = timeline._replace(
            root=Group(-1, ()),
            blocks=tuple(_part_of(group, True) for group in timeline.blocks),
            ranks=self.expert_ranks,
        )
        rest = timeline._replace(blocks=tuple(_part_of(group, False) for group in timeline.blocks))
        return (ExpertTimeline(rest, experts, self.by_rows),)

    def parameter(self, leaf: Tensor) -> Tensor:
        """This rank's part, padded."""
        if not names_expert(leaf.name):
            return super().parameter(leaf)
        if self.by_rows:
            experts, rows, *more = leaf.shape
            return held(leaf, (experts, rows.over(self.expert_ranks), *more), self.stored)
        return held(leaf, part_shape(leaf.shape, self.expert_ranks), self.stored)


def with_experts(strategy: Fsdp2, ep: int, by_rows: bool) -> ExpertFsdp2:
    """The strategy of ranks of which ep share the experts."""
    stated = {field.name: getattr(strategy, field.name) for field in fields(Fsdp2)}
    return ExpertFsdp2(**stated, expert_ranks=strategy.ranks // ep, by_rows=by_rows)


def _part_of(group: Group, experts: bool) -> Group:
    """A block's experts, or the rest of it."""
    found = (one for one in group.parameters if names_expert(one[0]) == experts)
    return Group(group.block, tuple(found))


class ExpertTimeline(NamedTuple):
    """The injector of one rank: the timelines of its experts, where they are apart, and of the rest."""

    rest: Fsdp2Timeline
    experts: Fsdp2Timeline | None
    by_rows: bool

    def start(self, build: Build) -> Hooks:
        """Hooks over a state of its own."""
        kind = RowsLive if self.by_rows else _Live
        live: _Live | _Both = kind(self.rest, build)
        if self.experts is not None:
            live = _Both(_Live(self.rest, build), kind(self.experts, build))
        return Hooks(live.before_block, live.after_block, None, live.phase, takes_gradients=True)


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
