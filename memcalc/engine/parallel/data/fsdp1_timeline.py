"""FSDP1 on the timeline: flat gathers before a block runs, flat reductions after its backward.

The order of events is that of PyTorch 2.13's _runtime_utils.py and _flat_param.py. Symbols: N ranks of a
group, Z elements of a flat shard, U = N Z. A gather makes the cast shard (Z, where parameters are cast)
and the flat parameter (U), of which every parameter is a view. In backward parameters' gradients wait
until the block's last one is there and are joined (U); the flat parameter goes, then the joined gradient
is cast to the dtype it is reduced in (U), reduced (Z) and, if it must, cast to the stored dtype (Z).
The rate limiter (limit_all_gathers) waits for what is freed and frees nothing itself. With
BACKWARD_PRE, the default, the next block is gathered before this one's backward, with BACKWARD_POST after
it. Source: as above; torch/distributed/fsdp/_limiter_utils.py. Checked by: oracle/test_fsdp1.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from memcalc.engine.injectors import Hooks
from memcalc.engine.sizes import Size
from memcalc.engine.tensors import Tensor

if TYPE_CHECKING:
    from memcalc.engine.build import Build


class FlatGroup(NamedTuple):
    """One flat parameter: the traced block it is of (-1: the rest), its parameters, Z."""

    block: int
    names: tuple[str, ...]
    shard: Size


class Fsdp1Timeline(NamedTuple):
    """The injector of one rank. stored: of shards; compute: of gathered ones; reduce: of reductions.

    frees: a block's flat parameter after its forward. prefetch: "pre", "post" or "none". ahead: the next
    block is gathered before this one's forward (forward_prefetch).
    """

    root: FlatGroup
    blocks: tuple[FlatGroup, ...]
    ranks: int
    stored: str
    compute: str
    reduce: str
    frees: bool
    prefetch: str
    ahead: bool = False

    def start(self, build: Build) -> Hooks:
        """Hooks over a state of its own."""
        live = _Live(self, build)
        return Hooks(live.before_block, live.after_block, None, live.phase, takes_gradients=True)


class _Live:
    """The state of one trace: gathered flat parameters by block."""

    def __init__(self, plan: Fsdp1Timeline, build: Build) -> None:
        self.plan, self.build, self.tape = plan, build, build.tape
        self.gathered: dict[int, Tensor] = {}
        self.waiting: FlatGroup | None = None  # ahead: whose gradients are not joined yet

    def phase(self, name: str) -> None:
        """The root is gathered first and reduced last; the loss's gradient calls for the last block."""
        if name == "forward":
            self._gather(self.plan.root)
            if self.plan.ahead:
                self._gather(self.plan.blocks[0])
        elif name == "backward" and self.plan.prefetch == "pre":
            self._gather(self.plan.blocks[-1])
        elif name == "end":
            if self.waiting:
                self._reduce(self.waiting)
            self._reduce(self.plan.root)

    def before_block(self, block: int, direction: str) -> None:
        """Gather what is not; in backward the next block too."""
        blocks = self.plan.blocks
        self._gather(blocks[block])
        if direction == "forward" and self.plan.ahead and block + 1 < len(blocks):
            self._gather(blocks[block + 1])
        if direction == "backward" and self.plan.prefetch == "pre" and block > 0:
            self._gather(blocks[block - 1])

    def after_block(self, block: int, direction: str) -> None:
        """Free, or in backward reduce and free.

        Views of a flat parameter gathered ahead are older than what the block before made, so that
        autograd joins their gradients after that block's backward.
        """
        group: FlatGroup | None = self.plan.blocks[block]
        if direction == "forward":
            if self.plan.frees:
                del self.gathered[block]
            return
        if self.plan.ahead:
            group, self.waiting = self.waiting, group
        if group:
            self._reduce(group)

    def _gather(self, group: FlatGroup) -> None:
        plan, tape = self.plan, self.tape
        if group.block in self.gathered:
            return
        before = (tape.op, tape.block)
        tape.at("all_gather", group.block)
        narrow = None
        if plan.stored != plan.compute:
            narrow = tape.empty("mp_shard", (group.shard,), plan.compute)
        tape.at("unshard", group.block)
        flat = tape.empty("full_param_padded", (group.shard * plan.ranks,), plan.compute)
        self.gathered[group.block] = flat
        del narrow
        tape.at(*before)

    def _reduce(self, group: FlatGroup) -> None:
        """Join the gradients, free the flat parameter, reduce; later micro-batches are added up."""
        plan, tape = self.plan, self.tape
        whole = (group.shard * plan.ranks,)
        before = (tape.op, tape.block)
        tape.at("reduce_scatter", group.block)
        joined = tape.empty("cat", whole, plan.compute)
        for name in group.names:
            tape.leaves[name].grad = None
        del self.gathered[group.block]
        if plan.prefetch == "post" and group.block > 0:
            self._gather(plan.blocks[group.block - 1])
        wide = tape.empty("_to_copy", whole, plan.reduce) if plan.reduce != plan.compute else None
        shard = tape.empty("empty_like", (group.shard,), plan.reduce)
        if plan.stored != plan.reduce:
            shard = tape.empty("_to_copy", (group.shard,), plan.stored)
        del wide
        if not self.build.has_gradients:
            tape.gradients.append(shard)
        del shard, joined
        tape.at(*before)
