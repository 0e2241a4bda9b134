"""Exchanges of parameters that ranks share: gathered before a block runs, reduced after its backward.

FSDP's groups are the blocks, an expert group beside each where experts are spread, and the rest (the
root's); ZeRO-3 of DeepSpeed gathers pieces of a bucket's size ahead of the modules. Bytes are those of
the strategy's own parts, padding included.
Sources: PyTorch 2.13, distributed/fsdp (fully_shard, FullyShardedDataParallel), distributed/pipelining/
stage.py; DeepSpeed 0.18.2, runtime/zero/partitioned_param_coordinator.py, stage3.py,
runtime/comm/coalesced_collectives.py.
Checked by: unit/test_exchanges.py, which holds the bytes against the closed forms of traffic.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from memcalc.engine.dtypes import ITEMSIZE
from memcalc.engine.parallel.data.fsdp1 import Fsdp1
from memcalc.engine.parallel.data.fsdp2 import Fsdp2, part_shape
from memcalc.engine.parallel.data.fsdp2_stages import Fsdp2Stages
from memcalc.engine.parallel.deepspeed.deepspeed import DeepSpeed
from memcalc.engine.parallel.experts.experts_fsdp2 import ExpertFsdp2
from memcalc.engine.plan import Plan
from memcalc.engine.sizes import ZERO, Size, product
from memcalc.engine.states import block_of, is_expert, multiplicity
from memcalc.engine.structure import Structure
from memcalc.engine.tensors import Tensor


class Asked(NamedTuple):
    """An exchange before its wires are known; fields as in `exchanges.Exchange`.

    copied, copies: bytes that kernels on the compute stream read and write around one call to lay its
    tensors out, and how many kernels, where copies.py has none.
    """

    axis: str
    kind: str
    call_bytes: Any
    calls: int
    ranks: int
    when: str
    per: str = "micro-batch"
    overlaps: bool = False
    place: str = ""
    beside_s: Any = 0.0
    copied: Any = 0
    copies: int = 0


class Shard(NamedTuple):
    """What is gathered and reduced together: a block's parameters (or its experts'), or the rest's.

    blocks: like it; gathered, reduced: bytes of the whole.
    """

    blocks: int
    ranks: int
    gathered: Any
    reduced: Any
    root: bool
    experts: bool = False

    @property
    def axis(self) -> str:
        return "edp" if self.experts else "shard"

    @property
    def place(self) -> str:
        return "root" if self.root else "block"


class Part(NamedTuple):
    """Sizes of one traced block's parameters (-1: outside the blocks), or of its experts'."""

    block: int
    experts: bool
    elements: Size
    gathered: Size = ZERO
    reduced: Size = ZERO


def parts_of(structure: Structure) -> tuple[Part, ...]:
    """Elements of each traced block that train, experts apart; found once a structure."""
    known = structure.cache.get("elements")
    if known is None:
        sums: dict[tuple[int, bool], Size] = {}
        for leaf in structure.leaves:
            key = (block_of(leaf), is_expert(leaf))
            sums[key] = sums.get(key, ZERO) + (leaf.numel if leaf.requires_grad else ZERO)
        known = tuple(Part(*key, size) for key, size in sums.items())
        structure.cache["elements"] = known
    return known  # type: ignore[return-value]


def shards_of(plan: Plan, strategy: Fsdp2 | Fsdp1) -> list[Shard]:
    """The groups of fully_shard, equal blocks together, the root's first."""
    structure, runs = plan.structure(plan.keeps_gradients)
    weights = multiplicity(runs)
    alike: Counter[tuple[Any, ...]] = Counter()
    for part in _fsdp_parts(structure, strategy):
        ranks = strategy.ranks if isinstance(strategy, Fsdp2) else strategy.timeline.ranks
        if part.experts:
            assert isinstance(strategy, ExpertFsdp2)
            ranks = strategy.expert_ranks
        sizes = part.gathered.value(plan.values), part.reduced.value(plan.values)
        alike[ranks, *sizes, part.block < 0, part.experts] += weights[part.block]
    shards = [Shard(times, *key) for key, times in alike.items()]
    return [one for one in shards if one.gathered]


def _fsdp_parts(structure: Structure, strategy: Fsdp2 | Fsdp1) -> tuple[Part, ...]:
    """Bytes of each group, experts apart where they are a group of their own; found once."""
    known = structure.cache.get(("shards", strategy))
    if known is None:
        apart = isinstance(strategy, ExpertFsdp2) and strategy.are_apart
        flat = dict(strategy.flat) if isinstance(strategy, Fsdp1) else {}
        sums: dict[tuple[int, bool], Part] = {}
        for leaf in structure.leaves:
            key = (block_of(leaf), apart and is_expert(leaf))
            part = sums.get(key, Part(*key, ZERO))
            gathered, reduced = _bytes_of(leaf, strategy, flat)
            sums[key] = part._replace(
                gathered=part.gathered + gathered, reduced=part.reduced + reduced
            )
        known = tuple(sums[key] for key in sorted(sums))
        structure.cache["shards", strategy] = known
    return known  # type: ignore[return-value]


def _bytes_of(leaf: Tensor, strategy: Fsdp2 | Fsdp1, flat: Mapping[str, Size]) -> tuple[Size, Size]:
    """Bytes that are gathered and reduced of a leaf, padded; a flat shard counts with its first leaf."""
    if isinstance(strategy, Fsdp1):
        line = strategy.timeline
        count = flat.get(leaf.name, ZERO) * line.ranks
        return count * ITEMSIZE[line.compute], count * ITEMSIZE[line.reduce]
    ranks, shape = strategy.ranks, part_shape(leaf.shape, strategy.ranks)
    if isinstance(strategy, ExpertFsdp2) and is_expert(leaf):
        ranks, shape = strategy.expert_ranks, strategy.parameter(leaf).shape
    narrow = strategy.gathers_fp8 and block_of(leaf) >= 0 and len(leaf.shape) > 1
    count = product(shape) * ranks
    dtype = leaf.dtype if strategy.added else strategy.compute
    reduced = count * ITEMSIZE[strategy.stored_dtype(leaf)] if leaf.requires_grad else ZERO
    return count * (1 if narrow else ITEMSIZE[dtype]), reduced


def sharded(plan: Plan, strategy: Fsdp2 | Fsdp1) -> list[Asked]:
    """FSDP: blocks are gathered for forward and, where freed, for backward; gradients scattered.

    The root stays gathered. With stages everything is gathered by a step's first forward, and reduced
    when its last backward is over.
    """
    layout, found = plan.parallel, []
    again, prefetches = _regathers(strategy)
    staged = isinstance(strategy, Fsdp2Stages)
    per = "step" if staged else "micro-batch"
    for one in shards_of(plan, strategy):
        ranks, place, side = one.ranks, one.place, not one.root
        gather = Asked(one.axis, "all_gather", one.gathered, one.blocks, ranks, "forward", per)
        found.append(gather._replace(overlaps=side, place=place))
        if again is not None and not one.root:
            kept = isinstance(strategy, Fsdp2) and strategy.keeps_last
            back = gather._replace(ranks=min(again or ranks, ranks), calls=one.blocks - kept)
            found.append(back._replace(when="backward", overlaps=prefetches, place=place))
        if one.reduced == 0:  # nothing of it trains
            continue
        when = "step" if staged else "backward"
        reduced = Asked(one.axis, "reduce_scatter", one.reduced, one.blocks, ranks, when, per)
        reduced = reduced._replace(overlaps=side and not staged, place=place)
        found.append(reduced)
        replicas = layout.copies * layout.cp // layout.shard_ranks
        if replicas > 1:
            part = -(-one.reduced // ranks)
            found.append(
                reduced._replace(axis="replica", kind="all_reduce", ranks=replicas, call_bytes=part)
            )
    return found


def _regathers(strategy: Fsdp2 | Fsdp1) -> tuple[int | None, bool]:
    """(ranks that backward gathers from: None no gather, 0 all; whether it runs ahead of a block)."""
    if isinstance(strategy, Fsdp1):
        line = strategy.timeline
        return (0 if line.frees else None), line.prefetch != "none"
    return {1: None, None: 0}.get(strategy.kept_on, strategy.kept_on), True


def stage_3(plan: Plan, strategy: DeepSpeed) -> list[Asked]:
    """Gathers in pieces of the prefetch bucket, ahead of the modules; small parameters stay whole."""
    limits, width, found = strategy.limits, ITEMSIZE[strategy.dtype], []
    structure, runs = plan.structure(plan.keeps_gradients)
    weights = multiplicity(runs)
    sums: dict[int, list[int]] = {}
    known: dict[Size, int] = {}
    for leaf in structure.leaves:
        count = known.get(leaf.numel)
        if count is None:
            count = known[leaf.numel] = leaf.numel.value(plan.values)
        row = sums.setdefault(block_of(leaf), [0, 0])
        row[0] += count if count > limits.stage3_param_persistence_threshold else 0
        row[1] += count if leaf.requires_grad else 0
    alike = Counter[tuple[bool, int, int]]()
    for block, (gathered, reduced) in sums.items():
        alike[block < 0, gathered, reduced] += weights[block]
    for (root, gathered, reduced), times in alike.items():
        place = "root" if root else "block"
        pieces = max(1, -(-gathered // limits.stage3_prefetch_bucket_size))
        calls = times if root else times * pieces
        each = gathered * width / (1 if root else pieces)
        one = Asked("dp", "all_gather", each, calls, strategy.ranks, "forward")
        one = one._replace(overlaps=not root, place=place)
        found += [one, one._replace(when="backward")]
        if not reduced:
            continue
        last = one._replace(kind="reduce_scatter", call_bytes=reduced * width, calls=times)
        copied = 4 * reduced * width  # into the bucket, and into the ranks' parts
        found.append(last._replace(when="backward", copied=copied, copies=2))
    return found
