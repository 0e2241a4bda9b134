"""Exchanges of ranks that hold the same weights, by how they hold them.

Sharded parameters (FSDP, ZeRO-3) are gathered and reduced block by block (exchanges_shards.py). Here are
whole ones, whose gradients are summed in buckets or at once: their bytes go through the closed forms of
`parallel/network/traffic.py`. Bytes are read off the leaves of the chunk.
Sources: PyTorch 2.13, nn/parallel/distributed.py, distributed/optim/zero_redundancy_optimizer.py;
Megatron-Core 0.14, distributed/param_and_grad_buffer.py; huggingface/nanotron 0.5, optim/zero.py;
DeepSpeed 0.18.2, runtime/zero/stage_1_and_2.py, runtime/bf16_optimizer.py.
Checked by: unit/test_exchanges.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memcalc.engine.dtypes import ITEMSIZE
from memcalc.engine.parallel.data.ddp import Ddp, bucket_bytes
from memcalc.engine.parallel.data.fsdp1 import Fsdp1
from memcalc.engine.parallel.data.fsdp2 import Fsdp2
from memcalc.engine.parallel.deepspeed.deepspeed import DeepSpeed
from memcalc.engine.parallel.deepspeed.deepspeed_megatron import Bf16Optimizer, Fp16Optimizer
from memcalc.engine.parallel.megatron.megatron import MegatronStates
from memcalc.engine.parallel.megatron.megatron_buffers import bucket_elements
from memcalc.engine.parallel.megatron.megatron_rules import expert_copies
from memcalc.engine.parallel.megatron.nanotron import NanotronStates
from memcalc.engine.parallel.network import traffic
from memcalc.engine.parallel.network.traffic import Copies, Traffic
from memcalc.engine.plan import Plan
from memcalc.engine.states import all_leaves, multiplicity
from memcalc.engine.timing.exchanges_shards import Asked, parts_of, sharded, stage_3


def data_exchanges(plan: Plan, stack: Mapping[str, Any]) -> list[Asked]:
    """The exchanges of dp (and cp) ranks; stack: its `[parallel]` table.

    Checked by: unit/test_exchanges.py.
    """
    layout, strategy = plan.parallel, plan.strategy
    if layout.copies * layout.cp == 1:
        return []
    if isinstance(strategy, Fsdp2 | Fsdp1):
        return sharded(plan, strategy)
    if isinstance(strategy, Ddp):
        return _ddp(plan, strategy)
    if isinstance(strategy, DeepSpeed):
        return _deepspeed(plan, strategy, stack)
    if isinstance(strategy, MegatronStates):
        return _megatron(plan, strategy, stack)
    if isinstance(strategy, NanotronStates):
        return _nanotron(plan, strategy)
    if isinstance(strategy, Bf16Optimizer | Fp16Optimizer):
        return _megatron_deepspeed(plan, strategy)
    return []


def _copies(plan: Plan) -> Copies:
    """The ranks that hold the same weights, which meet once a step."""
    layout = plan.parallel
    batches = plan.resolved.grad_accum_steps
    return Copies(layout.copies * layout.cp, layout.shard_ranks, batches, reduce_every=False)


def _elements(plan: Plan, experts: bool | None = None) -> int:
    """Parameters of this rank: all, those of experts, or the others."""
    structure, runs = plan.structure(plan.keeps_gradients)
    weights = multiplicity(runs)
    return sum(
        part.elements.value(plan.values) * weights[part.block]
        for part in parts_of(structure)
        if experts is None or part.experts == experts
    )


def _ddp(plan: Plan, strategy: Ddp) -> list[Asked]:
    """Buckets are summed as they fill in the last micro-batch; split states send parameters round."""
    buckets = strategy.buckets(plan)
    ranks = _copies(plan).ranks
    found = _in_buckets("dp", "all_reduce", sum(buckets), len(buckets), buckets[-1], ranks)
    if strategy.split_over > 1:
        found.append(_once("all_gather", sum(buckets), ranks))
    return found


def _in_buckets(
    axis: str, kind: str, total: Any, buckets: int, last: Any, ranks: int
) -> list[Asked]:
    """Buckets beside the backward of a step's last micro-batch; the last one has nothing beside it."""
    end = Asked(axis, kind, last, 1, ranks, "backward", "step", True, "last")
    if buckets == 1:
        return [end]
    mean = (total - last) / (buckets - 1)
    return [end._replace(call_bytes=mean, calls=buckets - 1, place=""), end]


def _once(kind: str, size: Any, ranks: int, axis: str = "dp") -> Asked:
    """One exchange after a step's last backward, with nothing beside it."""
    return Asked(axis, kind, size, 1, ranks, "step", "step")


def _from_traffic(found: tuple[Traffic, ...]) -> list[Asked]:
    """Closed forms of a step as exchanges after its last backward, with nothing beside them."""
    rows = [_once(one.collective.replace("-", "_"), one.call_bytes, one.ranks) for one in found]
    return [row._replace(calls=one.calls) for row, one in zip(rows, found, strict=True)]


def _deepspeed(plan: Plan, strategy: DeepSpeed, stack: Mapping[str, Any]) -> list[Asked]:
    """ZeRO by stage. Stages 1 and 2 sum whole buckets unless the stack's zero_reduction says scatter."""
    if strategy.ranks == 1:
        return []
    width = ITEMSIZE[strategy.dtype]
    size = _elements(plan) * width
    if strategy.stage == 3:
        return stage_3(plan, strategy)
    batches = plan.resolved.grad_accum_steps if strategy.stage == 2 else 1
    buckets = -(-size // (strategy.limits.reduce_bucket_size * width))
    scatter = strategy.stage and stack.get("zero_reduction") == "reduce-scatter"
    kind = "reduce_scatter" if scatter else "all_reduce"
    beside = strategy.limits.overlap_comm and strategy.stage == 2
    per = "micro-batch" if batches > 1 else "step"
    reduced = Asked("dp", kind, size / buckets, int(buckets), strategy.ranks, "backward", per)
    copied = 4 * reduced.call_bytes  # into the bucket, and divided by the ranks
    reduced = reduced._replace(overlaps=beside, place="block" if beside else "")
    found = [reduced._replace(copied=copied, copies=2)]
    return [*found, _once("all_gather", size, strategy.ranks)] if strategy.stage else found


def _megatron(plan: Plan, strategy: MegatronStates, stack: Mapping[str, Any]) -> list[Asked]:
    """Gradients are summed, or scattered and parameters gathered again; experts over their own ranks."""
    layout, found = plan.parallel, []
    beside = bool(stack.get("overlap_grad_reduce", strategy.overlaps))
    ahead = bool(stack.get("overlap_param_gather", False))
    width, narrow = ITEMSIZE[strategy.gradient_dtype], ITEMSIZE[plan.kernels.param_dtype]
    copies = layout.copies * layout.cp
    for experts, ranks in ((False, copies), (True, expert_copies(layout))):
        count = _elements(plan, experts)
        if ranks == 1 or not count:
            continue
        shard = (
            (strategy.expert_ranks if experts else strategy.ranks) if strategy.distributed else 1
        )
        axis = "edp" if experts else "dp"
        rows = _reductions(axis, count * width, ranks, shard)
        if beside:
            buckets = max(1, round(count / bucket_elements(ranks)))
            rows = [row for one in rows for row in _split(one, buckets)]
        found += rows
        if shard > 1:
            gather = _once("all_gather", count * narrow, shard, axis)
            found.append(gather._replace(when="forward", overlaps=True) if ahead else gather)
    return found


def _reductions(axis: str, size: Any, ranks: int, shard: int) -> list[Asked]:
    """One all-reduce; or a scatter over the shard's ranks and a sum over its replicas."""
    if shard == 1:
        return [_once("all_reduce", size, ranks, axis)]
    found = [_once("reduce_scatter", size, shard, axis)]
    if ranks > shard:
        found.append(_once("all_reduce", -(-size // shard), ranks // shard, "replica"))
    return found


def _split(one: Asked, buckets: int) -> list[Asked]:
    """The same bytes in buckets, beside the last backward."""
    last = one.call_bytes / buckets
    return _in_buckets(one.axis, one.kind, one.call_bytes, buckets, last, one.ranks)


def _nanotron(plan: Plan, strategy: NanotronStates) -> list[Asked]:
    """zero 1: the fp32 buffer is scattered and parameters gathered, both alone; else DDP's buckets."""
    count, ranks = _elements(plan), _copies(plan).ranks
    leaves = all_leaves(*plan.structure(plan.keeps_gradients))
    if strategy.ranks > 1:
        found = traffic.zero(1, count * 2, count * ITEMSIZE["fp32"], _copies(plan))
        return [_coalesced(one, len(leaves)) for one in _from_traffic(found)]
    width = ITEMSIZE[plan.kernels.param_dtype]
    sizes = bucket_bytes([leaf.numel.value(plan.values) * width for leaf in reversed(leaves)])
    wide = ITEMSIZE["fp32"] // width
    return _in_buckets("dp", "all_reduce", sum(sizes) * wide, len(sizes), sizes[-1] * wide, ranks)


def _coalesced(one: Asked, parameters: int) -> Asked:
    """nanotron's coalesced collectives: lists of tensors made flat, NCCL's own flat copy, and back.

    Each rank's part is a list of every parameter's; gathered ones are copied into place one by one.
    Source: huggingface/nanotron 0.5, distributed.py (all_gather_coalesced, reduce_scatter_coalesced).
    """
    lists = 2 * one.ranks
    if one.kind == "all_gather":
        return one._replace(copied=6 * one.call_bytes, copies=lists + parameters * one.ranks)
    return one._replace(copied=4 * one.call_bytes, copies=lists + parameters)


def _megatron_deepspeed(plan: Plan, strategy: Bf16Optimizer | Fp16Optimizer) -> list[Asked]:
    """Gradients are summed whole after the last micro-batch (bf16: in fp32), parts gathered again."""
    count, copies = _elements(plan), _copies(plan)
    is_wide = isinstance(strategy, Bf16Optimizer)
    found = traffic.ddp(count * (4 if is_wide else 2), copies)
    parts = isinstance(strategy, Bf16Optimizer) or strategy.zero
    more = (Traffic("dp", "all-gather", copies.ranks, 1, count * 2),) if parts else ()
    rows = _from_traffic((*found, *more))  # through flat copies: in and out, or NCCL's own
    passes = {"all_reduce": 4, "all_gather": 2}
    return [one._replace(copied=passes[one.kind] * one.call_bytes, copies=2) for one in rows]
