"""Weights of a rank's chunks: bytes of parameters, gradients and states, and what the optimizer steps over.

A rank's leaves are those of so many dense and sparse blocks and of its ends. How they are divided inside a
layer is a cell's; how many ranks share states and how often gradients are summed lies outside. All are
whole numbers, computed once a combination.
Checked by: property/test_search_grid.py, against `states`, `megatron.MegatronStates` and `optimizer_time`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

from memcalc.engine.dtypes import ITEMSIZE
from memcalc.engine.optimizer import state_tensors
from memcalc.engine.parallel.megatron.megatron_buffers import (
    BUCKET_STEP,
    GROUPED_STREAMS,
    PARAMETER_STEP,
    TE_WORKSPACE_BYTES,
    buffer_elements,
    dummy_gradient_bytes,
)
from memcalc.engine.parallel.strategy import held
from memcalc.engine.plan import Plan
from memcalc.engine.states import is_expert
from memcalc.engine.tensors import Tensor
from memcalc.engine.timing.optimizer_time import Stepped, optimizer_s
from memcalc.inputs.rates import Rates


class Chunk(NamedTuple):
    """Blocks of a chunk and its ends."""

    dense: int
    sparse: int
    begins: bool
    finishes: bool

    @property
    def layers(self) -> int:
        return self.dense + self.sparse

    @property
    def times(self) -> tuple[int, ...]:
        """How often each of Weights.parts is in it."""
        copies = self.finishes and not self.begins
        return int(self.begins), self.dense, self.sparse, int(self.finishes), int(copies)


class Weights:
    """Leaves of a family of cells, and sums over them.

    plan: any of the family, with one block of each kind and both ends; dtypes and the optimizer are its.
    """

    def __init__(self, plan: Plan, kinds: dict[int, int]) -> None:
        self.plan = plan
        structure, _ = plan.structure(True)
        self.blocks: dict[str, list[Tensor]] = {"dense": [], "sparse": []}
        self.first: list[Tensor] = []
        self.head: list[Tensor] = []
        names = {block: ("sparse" if kind % 2 else "dense") for block, kind in kinds.items()}
        for leaf in structure.leaves:
            self._sort(leaf, names)
        self.copies = [held(leaf) for leaf in self.first if leaf.name == "embedding.weight"]
        for copy in self.copies:
            copy.name = "lm_head.weight"
        self.numels: dict[int, int] = {}
        self.paddings: dict[object, int] = {}
        self.fixed: dict[tuple[bool, ...], int] = {}
        self.known: dict[tuple[int, int], tuple[tuple[int, int], ...]] = {}
        self.stepped: dict[tuple[int, int], float] = {}

    def _sort(self, leaf: Tensor, names: dict[int, str]) -> None:
        parts = leaf.name.split(".", 2)
        if parts[0] == "layers":
            if int(parts[1]) in names:
                self.blocks[names[int(parts[1])]].append(leaf)
        elif any(self.blocks.values()):
            self.head.append(leaf)
        else:
            self.first.append(leaf)

    def parts(self) -> tuple[list[Tensor], ...]:
        """Leaves before the blocks, of a dense and of a sparse one, after them, and a tied head's copy."""
        tied = self.copies if self.plan.config.tie_word_embeddings else []
        return self.first, self.blocks["dense"], self.blocks["sparse"], self.head, tied

    def leaves(self, chunk: Chunk) -> list[tuple[list[Tensor], int]]:
        """Lists of a chunk's leaves in the order of registration, and how often each is there."""
        found = zip(self.parts(), chunk.times, strict=True)
        return [(leaves, times) for leaves, times in found if times and leaves]

    def elements(self, ranks: int, expert_ranks: int) -> tuple[tuple[int, int], ...]:
        """Elements of one rank's parts, outside experts and experts', rounded up leaf by leaf."""
        key = (ranks, expert_ranks)
        if key not in self.known:
            found = []
            for leaves in self.parts():
                sums = [0, 0]
                for leaf in leaves:
                    expert = is_expert(leaf)
                    sums[expert] += -(-self.numel(leaf) // (expert_ranks if expert else ranks))
                found.append((sums[0], sums[1]))
            self.known[key] = tuple(found)
        return self.known[key]

    def numel(self, leaf: Tensor) -> int:
        """Elements of a leaf on a rank."""
        found = self.numels.get(id(leaf))
        if found is None:
            found = self.numels[id(leaf)] = leaf.numel.value(self.plan.values)
        return found

    def tensors(self) -> tuple[int, ...]:
        """How many parameters each part has."""
        return tuple(map(len, self.parts()))

    @cached_property
    def widths(self) -> tuple[int, int, int]:
        """Bytes an element takes as a parameter, as a gradient, and as states."""
        leaf = held(self.first[0], dtype="fp32")
        states = state_tensors(leaf, self.plan.optimizer)
        assert all(shape == leaf.shape for shape, _ in states)
        item = ITEMSIZE[self.plan.kernels.param_dtype]
        narrow = self.plan.kernels.param_dtype == "fp16"
        return item, 2 if narrow else 4, sum(ITEMSIZE[dtype] for _, dtype in states)

    def counts(self, chunk: Chunk, experts: bool) -> tuple[tuple[tuple[int, ...], int], ...]:
        """Elements of a chunk's leaves, experts' or the others, in lists with how often each is there."""
        own = self.numbers[experts]
        return tuple((own[at], times) for at, times in enumerate(chunk.times) if times and own[at])

    @cached_property
    def numbers(self) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """Elements of each part's leaves: those outside experts, then experts'."""
        return tuple(
            tuple(
                tuple(self.numel(leaf) for leaf in leaves if is_expert(leaf) == experts)
                for leaves in self.parts()
            )
            for experts in (False, True)
        )

    @cached_property
    def is_even(self) -> bool:
        """Whether every leaf fills whole steps of a buffer, so that only the ends of buckets are padded."""
        return all(self.numel(leaf) % PARAMETER_STEP == 0 for part in self.parts() for leaf in part)

    def padding(self, chunk: Chunk, experts: bool, ranks: int, bucket: int | None) -> int:
        """Elements that a chunk's buffer has beyond its parameters."""
        key = (chunk, experts, ranks, bucket)
        if key not in self.paddings:
            self.paddings[key] = self._padding(chunk, experts, ranks, bucket)
        return self.paddings[key]

    def _padding(self, chunk: Chunk, experts: bool, ranks: int, bucket: int | None) -> int:
        counts = self.counts(chunk, experts)
        if self.is_even and bucket is not None:
            sizes = buckets_of(counts, bucket)
            return int((-sizes % math.lcm(ranks, BUCKET_STEP)).sum())
        every = [count for own, times in counts for count in own * times]
        return buffer_elements(every, ranks, True, bucket) - sum(every)

    def fixed_bytes(self, chunks: Iterable[Chunk]) -> int:
        """Workspaces and dummy gradients of a rank with these chunks."""
        there = tuple(any(part) for part in zip(*(chunk.times for chunk in chunks), strict=True))
        if there not in self.fixed:
            total = TE_WORKSPACE_BYTES * (1 + GROUPED_STREAMS * there[2])
            options = self.plan.kernels.megatron
            if options is not None and options.adds_in_place:
                parts = zip(self.parts(), there, strict=True)
                own = [leaf for leaves, is_there in parts if is_there for leaf in leaves]
                total += dummy_gradient_bytes(own, self.plan.values, self.plan.kernels)
            self.fixed[there] = total
        return self.fixed[there]

    def optimizer_s(self, count: int, tensors: int, rates: Rates) -> float:
        """Seconds of an optimizer step over so many fp32 elements of so many parameters."""
        key = (count, tensors)
        if key not in self.stepped:
            optimizer = self.plan.optimizer
            states = self.widths[2] - 4 * optimizer.master
            temporary = ITEMSIZE[optimizer.state_dtype or "fp32"]
            stepped = Stepped(
                count, tensors, 4 * count, 4 * count, states * count, temporary * count, ()
            )
            self.stepped[key] = optimizer_s(rates, self.plan, stepped)
        return self.stepped[key]


@lru_cache(maxsize=1 << 14)
def buckets_of(counts: tuple[tuple[tuple[int, ...], int], ...], bucket: int) -> Any:
    """Elements of each bucket of a buffer whose leaves fill whole steps, last leaves first.

    A bucket closes with the leaf that brings it to so many elements.
    """
    import numpy as np

    sizes, open_elements = [], 0
    for own, times in reversed(counts):
        for count in own[::-1] * times:
            open_elements += count
            if open_elements >= bucket:
                sizes.append(open_elements)
                open_elements = 0
    return np.array([*sizes, open_elements] if open_elements else sizes, np.int64)
