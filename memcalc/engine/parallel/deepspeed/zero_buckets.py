"""Gradients of DeepSpeed's ZeRO on the timeline: the bucket they are copied into, and its reductions.

Each gradient is copied into a flat bucket of fixed size, made at the first gradient and gone at the
end (stage 3: there for the whole run), and its own memory freed. A full bucket is summed over the
ranks: slices for different ranks are first joined in one more flat tensor. What this rank steps over is
copied into a tensor for its whole part, made at the first such gradient. Stage 2 does so as gradients
come, stage 1 after the last micro-batch's backward, in the order of the parameters. A gradient larger
than the bucket keeps its own memory until it is reduced. Figures are those of the rank whose part is
reduced first: the last rank, in stage 1 the first.
Source: DeepSpeed 0.18.2, runtime/zero/stage_1_and_2.py (process_gradients,
reduce_independent_p_g_buckets_and_remove_grads, average_tensor, copy_grads_in_partition), stage3.py
(__add_grad_to_ipg_bucket, __avg_scatter_grads), runtime/comm/coalesced_collectives.py,
runtime/engine.py (buffered_allreduce_fallback). Checked by: unit/test_deepspeed_timeline.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import accumulate, groupby
from typing import TYPE_CHECKING, NamedTuple

from memcalc.engine.injectors import Hooks
from memcalc.engine.sizes import number
from memcalc.engine.states import block_of
from memcalc.engine.tensors import Tensor

if TYPE_CHECKING:
    from memcalc.engine.build import Build

#: Stage 3 takes norms of at most so many elements at a time (_constant_buffered_norm2).
NORM_ELEMENTS = 250_000_000
Parameters = tuple[tuple[str, int], ...]


class Buckets(NamedTuple):
    """The injector. limit: elements of a bucket; double: two of them; ranks: those that share states.

    parameters: name and elements of each, in flat order. on_host: this rank's part is on the host
    (optimizer offload), so gradients go there instead of a tensor of their own. pipeline: under
    PipelineEngine, which makes the bucket when it reduces.
    """

    stage: int
    limit: int
    double: bool
    ranks: int
    dtype: str
    parameters: Parameters
    on_host: bool = False
    pipeline: bool = False

    def start(self, build: Build) -> Hooks:
        """Hooks of one micro-batch."""
        live = {0: _Stage0, 1: _Stage1, 2: _Stage2, 3: _Stage3}[self.stage](self, build)
        return Hooks(gradient_ready=live.ready, phase=live.phase, takes_gradients=self.stage > 0)


class Flat:
    """The flat list of parameters, cut into equal parts of the ranks, padded to pairs of elements."""

    def __init__(self, parameters: Parameters, ranks: int) -> None:
        self.sizes = dict(parameters)
        starts = accumulate((size for _, size in parameters), initial=0)
        self.starts = {name: start for (name, _), start in zip(parameters, starts, strict=False)}
        self.part = part_elements(sum(self.sizes.values()), ranks)

    def pieces(self, name: str) -> Iterator[tuple[int, int]]:
        """(rank, elements) of a parameter's pieces."""
        start, left = self.starts[name], self.sizes[name]
        while left > 0:
            rank = start // self.part
            length = min(left, (rank + 1) * self.part - start)
            yield rank, length
            start, left = start + length, left - length

    def slices(self, names: list[str]) -> Iterator[int]:
        """Elements of each slice of a bucket: neighbours for the same rank are one."""
        pieces = [piece for name in names for piece in self.pieces(name)]
        for _, same in groupby(pieces, key=lambda piece: piece[0]):
            yield sum(elements for _, elements in same)

    def owned(self, rank: int, name: str) -> int:
        """Elements of a parameter that lie in a rank's part."""
        return sum(length for each, length in self.pieces(name) if each == rank)

    def touched(self, rank: int) -> int:
        """Elements of the parameters a rank's part touches, whole ones counted."""
        return sum(size for name, size in self.sizes.items() if self.owned(rank, name))


def part_elements(elements: int, ranks: int) -> int:
    """Elements of one rank's part of a flat list."""
    return -(-elements // (2 * ranks)) * 2


class _Live:
    """What all stages have: a bucket that fills, and leaves waiting in it."""

    def __init__(self, plan: Buckets, build: Build) -> None:
        self.plan, self.build, self.tape = plan, build, build.tape
        self.flat = Flat(plan.parameters, plan.ranks)
        self.waiting: list[Tensor] = []
        self.filled = 0

    @contextmanager
    def within(self, op: str) -> Iterator[None]:
        """Label what is made with an operator outside the blocks."""
        before = (self.tape.op, self.tape.block)
        self.tape.at(op, -1)
        try:
            yield
        finally:
            self.tape.at(*before)

    def ready(self, leaf: Tensor) -> None:
        """A gradient is there."""

    def phase(self, name: str) -> None:
        """A phase begins."""

    def empty(self, name: str, elements: int) -> Tensor:
        """A flat tensor of the gradients' dtype."""
        return self.tape.empty(name, (number(elements),), self.plan.dtype)

    def join(self, slices: Iterable[int]) -> None:
        """Copy slices into flat tensors that exceed the limit, each summed and gone before the next.

        One slice alone needs no copy.
        """
        joined: list[int] = []
        for elements in slices:
            joined.append(elements)
            if sum(joined) > self.plan.limit:
                self._flatten(joined)
                joined = []
        self._flatten(joined)

    def _flatten(self, slices: list[int]) -> None:
        if len(slices) > 1:
            self.empty("flatten", sum(slices))

    def take(self, leaf: Tensor) -> None:
        """Copy a gradient into the bucket, reducing what is there when it does not fit beside it."""
        elements = self.flat.sizes[leaf.name]
        if self.filled + elements > self.plan.limit:
            self.reduce()
        if elements <= self.plan.limit:
            leaf.grad = None
        self.waiting.append(leaf)
        self.filled += elements

    def reduce(self) -> None:
        """Sum a bucket over the ranks and keep this rank's part of it."""
        raise NotImplementedError

    def to_host(self, elements: int) -> None:
        """A gradient on its way to the host: its norm in fp64, then a copy in fp32."""
        with self.within("reduce_scatter"):
            self.tape.empty("double", (number(min(elements, NORM_ELEMENTS)),), "fp64")
            if self.plan.dtype != "fp32":
                self.tape.empty("float", (number(elements),), "fp32")


class _Stage0(_Live):
    """Every rank keeps all gradients; after the last micro-batch they are summed in flat copies."""

    def phase(self, name: str) -> None:
        if name != "end" or self.plan.ranks == 1 or not self.build.reduces:
            return
        with self.within("reduce_scatter"):
            self.join(self.flat.sizes.values())


class _Stage2(_Live):
    """Gradients are reduced as they come; this rank's part is kept until the step."""

    def __init__(self, plan: Buckets, build: Build) -> None:
        super().__init__(plan, build)
        self.rank = 0 if plan.stage == 1 else plan.ranks - 1
        self.buckets: list[Tensor] = []
        self.own: Tensor | None = None

    def ready(self, leaf: Tensor) -> None:
        self.open()
        self.take(leaf)

    def open(self) -> None:
        """Make the bucket at the first gradient of a step's micro-batch."""
        if not self.buckets:
            with self.within("reduce_bucket"):
                for _ in range(2 if self.plan.double else 1):
                    self.buckets.append(self.empty("ipg_buffer", self.plan.limit))

    def phase(self, name: str) -> None:
        if name == "end":
            self.reduce()
            self.close()

    def close(self) -> None:
        """Drop the bucket. Parts of several micro-batches are summed in the first one's."""
        self.buckets.clear()
        if self.own is not None and not (self.build.has_gradients and self.plan.stage == 2):
            self.tape.gradients.append(self.own)
        self.own = None

    def reduce(self) -> None:
        names = [leaf.name for leaf in self.waiting]
        with self.within("reduce_scatter"):
            self.join(self.flat.slices(names))
        for leaf in self.waiting:
            own = self.flat.owned(self.rank, leaf.name)
            if own and self.plan.on_host:
                self.to_host(own)
            elif own and self.own is None:
                with self.within("gradient_part"):
                    self.own = self.empty("grads_in_partition", self.flat.touched(self.rank))
            leaf.grad = None
        self.waiting, self.filled = [], 0


class _Stage1(_Stage2):
    """Gradients stay where they are until the last micro-batch's backward is over."""

    def ready(self, leaf: Tensor) -> None:
        if not self.plan.pipeline:
            self.open()

    def phase(self, name: str) -> None:
        if name == "backward" and self.build.has_gradients:
            self._earlier()
        elif name == "end" and self.build.reduces:
            self.tape.mark("backward block", -1)  # what follows is outside the blocks
            self.open()
            for parameter in self.flat.sizes:
                self.take(self.tape.leaves[parameter])
            self.reduce()
            self.close()
        elif name == "end":
            self.tape.gradients += self.buckets

    def _earlier(self) -> None:
        """Gradients and bucket of the micro-batches before."""
        for leaf in filter(lambda leaf: leaf.requires_grad, self.tape.leaves.values()):
            before = (self.tape.op, self.tape.block)
            self.tape.at("accumulate", block_of(leaf))
            leaf.grad = (
                self.tape.earlier_made("gradient", leaf.shape, leaf.dtype)
                if self.build.reduces
                else self.tape.external(leaf.shape, leaf.dtype)
            )
            self.tape.at(*before)
        if self.plan.pipeline or not self.build.reduces:
            return
        with self.within("reduce_bucket"):
            self.buckets.append(
                self.tape.earlier_made("ipg_buffer", (number(self.plan.limit),), self.plan.dtype)
            )


class _Stage3(_Live):
    """Parts of gradients are summed in a buffer that is always there, as is the bucket."""

    def ready(self, leaf: Tensor) -> None:
        self.take(leaf)

    def phase(self, name: str) -> None:
        if name == "end":
            self.reduce()

    def reduce(self) -> None:
        """Interleave the ranks' parts in one more flat tensor; one even gradient needs none."""
        ranks = self.plan.ranks
        sizes = [self.flat.sizes[leaf.name] for leaf in self.waiting]
        padded = [-(-size // ranks) * ranks for size in sizes]
        if sizes and not (len(sizes) == 1 and padded == sizes):
            with self.within("reduce_scatter"):
                scattered = self.empty("cat", sum(padded))
                self._keep(padded)
                del scattered
        for leaf in self.waiting:
            leaf.grad = None
        self.waiting, self.filled = [], 0

    def _keep(self, padded: list[int]) -> None:
        """Copy the parts into the buffer; where that is on the host, by way of this GPU."""
        for elements in padded if self.plan.on_host else ():
            part = elements // self.plan.ranks
            again = self.empty("to", part)
            self.to_host(part)
            del again
