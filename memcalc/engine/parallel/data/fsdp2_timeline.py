"""FSDP2 on the timeline: gathers before a block runs, reductions after its backward.

The order of events is that of PyTorch 2.13's _fsdp_param_group.py, _fsdp_state.py and
_fsdp_collectives.py. Symbols: N ranks of a group, z padded elements of one parameter on a rank, Z the
sum of z over a group. A gather makes a flat input (Z, where parts are cast) and a flat output (N Z),
from which every parameter is copied out (N z). In forward the output lives until the next group is
copied out, in backward only until its own is. A reduction makes a flat input (N Z), which lives until
the next reduction, and a flat output (Z): the group's gradients are views of it.
Streams free nothing by themselves: FSDP2 holds a tensor until its events have passed, in this order on
a GPU as on a CPU. A block whose input needs no gradient has no hook in backward: it is reduced and freed
after the root. Not here: what NCCL takes (engine/parallel/network/communication.py).
Checked by: oracle/test_fsdp2.py, event for event; oracle/test_peft_ranks.py, with frozen parameters.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from memcalc.engine.dtypes import ITEMSIZE
from memcalc.engine.injectors import Hooks
from memcalc.engine.sizes import ZERO, Size, product
from memcalc.engine.tensors import Shape, Tensor

if TYPE_CHECKING:
    from memcalc.engine.build import Build

ROOT = -1


class Group(NamedTuple):
    """Parameters that are gathered together: the traced block they are of, their names and shapes.

    dtypes: (kept in, gathered in) of each, where they are not all the timeline's.
    """

    block: int
    parameters: tuple[tuple[str, Shape], ...]
    dtypes: tuple[tuple[str, str], ...] = ()

    def padded(self, ranks: int) -> list[Size]:
        """z of each parameter."""
        return [product((shape[0].over(ranks), *shape[1:])) for _, shape in self.parameters]


class Part(NamedTuple):
    """A rank's part of a parameter: z, the dtype it is kept in, the dtype it is gathered in."""

    size: Size
    stored: str
    gathered: str

    @property
    def casts(self) -> bool:
        """Whether it is cast before it is gathered."""
        return self.stored != self.gathered


class Fsdp2Timeline(NamedTuple):
    """The injector of one rank; fields as in `fsdp2.Fsdp2`, groups as `fsdp2.groups_of` gives them.

    on_host: parts wait on the host, and reduced gradients go there (offload_fsdp2.py). reduces: dtype of
    reductions, the trained parts'; "": stored.
    """

    root: Group
    blocks: tuple[Group, ...]
    ranks: int
    kept_on: int | None
    replicas: int
    stored: str
    compute: str
    gathers_fp8: bool = False
    keeps_last: bool = False
    on_host: bool = False
    reduces: str = ""

    @property
    def casts(self) -> bool:
        """Whether parts are cast before they are gathered."""
        return self.stored != self.compute

    def parts(self, group: Group) -> list[Part]:
        """This rank's part of each parameter of a group."""
        narrow = self.gathers_fp8 and group.block != ROOT
        dtypes = group.dtypes or [
            (self.stored, "fp8" if narrow and len(shape) > 1 else self.compute)
            for _, shape in group.parameters
        ]
        padded = group.padded(self.ranks)
        return [Part(size, *dtype) for size, dtype in zip(padded, dtypes, strict=True)]

    def start(self, build: Build) -> Hooks:
        """Hooks over a state of its own."""
        live = _Live(self, build)
        return Hooks(live.before_block, live.after_block, None, live.phase, takes_gradients=True)


def _flat(parts: list[Part], times: int) -> tuple[Shape, str]:
    """Shape and dtype of a flat buffer of parts as they are gathered; of several dtypes it is bytes."""
    dtypes = {part.gathered for part in parts}
    if len(dtypes) == 1:
        return (sum((part.size for part in parts), ZERO) * times,), dtypes.pop()
    total = sum((part.size * ITEMSIZE[part.gathered] for part in parts), ZERO)
    return (total * times,), "uint8"


@dataclass(slots=True)
class _Held:
    """What a group has on this rank beside its parts."""

    gathered: Tensor | None = None  # flat, not copied out yet
    whole: list[Tensor] = field(default_factory=list)  # unsharded parameters
    fewer: list[Tensor] = field(default_factory=list)  # kept after forward, cut over fewer ranks


class _Live:
    """The state of one trace."""

    def __init__(self, plan: Fsdp2Timeline, build: Build) -> None:
        self.plan, self.build, self.tape = plan, build, build.tape
        self.held = {group.block: _Held() for group in (plan.root, *plan.blocks)}
        self.previous: Tensor | None = None  # forward: the last group's gathered output
        self.reduced: Tensor | None = None  # backward: the last reduction's input
        self.summed: dict[int, Tensor] = {}  # what replicas have summed, until backward is over
        self.over: set[int] = set()  # blocks whose backward has ended by a hook of their own

    def phase(self, name: str) -> None:
        """The root's group is gathered first and reduced last; it stays gathered in between."""
        root = self.plan.root
        if name == "forward" and root.parameters:
            self._gather(root)
            self._copy_out(root, defer=True)
        elif name == "forward end":
            self.previous = None
        elif name == "backward":
            self._gather(self.plan.blocks[-1])
        elif name == "end":
            if root.parameters:
                self._reduce(root)
            self._end_others()
            self.summed.clear()
            self.reduced = None

    def before_block(self, block: int, direction: str) -> None:
        """Gather what is not gathered yet; in backward, begin with the block that comes next."""
        group = self.plan.blocks[block]
        self._gather(group)
        self._copy_out(group, defer=direction == "forward")
        if direction == "backward" and block > 0:
            self._gather(self.plan.blocks[block - 1])

    def after_block(self, block: int, direction: str) -> None:
        """Free gathered parameters; in backward, reduce the gradients."""
        group = self.plan.blocks[block]
        if direction == "backward":
            if block in self.build.fed:
                self.over.add(block)
                self._reduce(group)
        elif self.plan.kept_on != 1 and not (
            self.plan.keeps_last and group is self.plan.blocks[-1]
        ):
            self._free_after_forward(group)

    def _end_others(self) -> None:
        """Reduce and free blocks that no hook has ended, the first one first."""
        for group in self.plan.blocks:
            if group.block not in self.over:
                self._reduce(group)
            self.held[group.block].gathered = None

    @contextmanager
    def _within(self, op: str, group: Group) -> Iterator[None]:
        """Label what is made with an operator and a block."""
        tape = self.tape
        before = (tape.op, tape.block)
        tape.at(op, group.block)
        try:
            yield
        finally:
            tape.at(*before)

    def _gather(self, group: Group) -> None:
        """All-gather into a flat output, from the parts or from what was kept on fewer ranks."""
        plan, held = self.plan, self.held[group.block]
        if held.whole or held.gathered is not None or plan.ranks == 1:
            return
        copies = plan.ranks // ((held.fewer and plan.kept_on) or plan.ranks)
        parts = plan.parts(group)
        cast = [part for part in parts if part.casts]
        with self._within("all_gather", group):
            narrow: Tensor | list[Tensor] | None = None
            if plan.on_host and not held.fewer:
                narrow = [self._copied(part) for part in parts]
            elif cast:
                narrow = self.tape.empty("all_gather_input", *_flat(cast, copies))
            held.gathered = self.tape.empty("all_gather_output", *_flat(parts, plan.ranks))
            del narrow

    def _copy_out(self, group: Group, defer: bool) -> None:
        """The unsharded parameters. defer: the flat output goes with the next group's copy.

        A group of one rank has no flat output: parts are cast one by one.
        """
        plan, held = self.plan, self.held[group.block]
        if held.whole:
            return
        narrow = None
        with self._within("unshard", group):
            for part in plan.parts(group):
                wide = self._from_host(part) if plan.ranks == 1 else None
                if plan.ranks == 1 and part.casts:
                    narrow = self.tape.empty("_to_copy", (part.size,), part.gathered)
                    wide = None
                whole = (part.size * plan.ranks,)
                held.whole.append(self.tape.empty("unsharded", whole, part.gathered))
            del narrow, wide
        held.fewer = []
        if defer:
            self.previous = held.gathered
        held.gathered = None

    def _copied(self, part: Part) -> Tensor:
        """A part from the host, cast on the GPU where it is wider."""
        wide = self.tape.empty("to", (part.size,), part.stored)
        return self.tape.empty("_to_copy", (part.size,), part.gathered) if part.casts else wide

    def _from_host(self, part: Part) -> Tensor | None:
        """A part's copy on the GPU, where parts wait on the host."""
        return self.tape.empty("to", (part.size,), part.stored) if self.plan.on_host else None

    def _free_after_forward(self, group: Group) -> None:
        """Free the unsharded parameters, each after a copy of its part where fewer ranks keep it."""
        plan, held = self.plan, self.held[group.block]
        if plan.kept_on is None:
            _drop(held.whole)
            return
        with self._within("reshard", group):
            for part in plan.parts(group):
                kept = (part.size * (plan.ranks // plan.kept_on),)
                held.fewer.append(self.tape.empty("clone", kept, part.gathered))
                del held.whole[0]

    def _reduce(self, group: Group) -> None:
        """Reduce-scatter a group's gradients. A later micro-batch's are added to those there are."""
        plan = self.plan
        sizes, gradients = self._gradients(group)
        _drop(self.held[group.block].whole)
        self.reduced = None
        if not gradients:
            return
        total = sum(sizes, ZERO)
        with self._within("reduce_scatter", group):
            dtype = plan.reduces or plan.stored
            reduced = self.tape.empty("reduce_scatter_input", (total * plan.ranks,), dtype)
            last = gradients[-1] if plan.ranks > 1 else None  # PyTorch's loop variable
            gradients.clear()
            output = self.tape.empty("reduce_scatter_output", (total,), dtype)
            del last
        if plan.replicas > 1:
            self.summed[group.block] = output
        if self.keeps_output():
            self.tape.gradients.append(output)
        self.reduced = reduced

    def keeps_output(self) -> bool:
        """Whether what a reduction returns becomes the gradients of its group."""
        return not (self.build.has_gradients or self.plan.on_host)

    def _gradients(self, group: Group) -> tuple[list[Size], list[Tensor]]:
        """Padded sizes of what has a gradient, and the gradients, taken off the parameters."""
        sizes, gradients = [], []
        for (name, _), size in zip(group.parameters, group.padded(self.plan.ranks), strict=True):
            leaf = self.tape.leaves[name]
            if leaf.grad is not None:
                sizes.append(size)
                with self._within("reduce_scatter", group):
                    gradients.append(_placed_as(leaf, leaf.grad))
                leaf.grad = None
        return sizes, gradients


def _placed_as(leaf: Tensor, gradient: Tensor) -> Tensor:
    """A gradient as its parameter is placed where tensor parallelism splits layers.

    A term of a sum is summed over the tp ranks; of a whole one this rank's rows are copied.
    """
    if leaf.placed is None or not (leaf.placed.partial or leaf.placed.gradient):
        return gradient
    name = "all_reduce" if leaf.placed.partial else "clone"
    return leaf.tape.empty(name, leaf.shape, gradient.dtype)


def _drop(tensors: list[Tensor]) -> None:
    """Free the first tensor first."""
    while tensors:
        del tensors[0]
