"""Copies: what a strategy's own code moves in a rank's memory around its exchanges, beside the ledger.

    FSDP2    a gather casts the shard and copies what arrived into each parameter; a reduction first
             copies gradients into its buffer
    FSDP1    a gather casts the shard alone; backward joins a group's gradients into a flat one, which
             is divided by the ranks before it is reduced
    DDP      gradients go into buckets and back, unless they are views of them, and are divided there
    nanotron every micro-batch's 16-bit gradients are added into fp32 ones
    DeepSpeed's BF16_Optimizer   the same, each through an fp32 copy of it
    Megatron gradients are divided in their fp32 buffer, which is zeroed, once a step

Rows are those of a micro-batch; what happens once a step is spread over them. Each is bytes read plus
written. Sources: PyTorch 2.13, distributed/fsdp/_fully_shard/_fsdp_collectives.py, distributed/fsdp/
_flat_param.py, _runtime_utils.py, csrc/distributed/c10d/reducer.cpp; huggingface/nanotron 0.5, optim/
gradient_accumulator.py; DeepSpeed, runtime/bf16_optimizer.py, update_hp_grads (2022 to 0.18.2);
Megatron-Core 0.14, distributed/param_and_grad_buffer.py.
Checked by: unit/test_copies.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from memcalc.engine.dtypes import ITEMSIZE
from memcalc.engine.parallel.data.ddp import Ddp
from memcalc.engine.parallel.data.fsdp1 import Fsdp1
from memcalc.engine.parallel.data.fsdp2 import Fsdp2
from memcalc.engine.parallel.deepspeed.deepspeed_megatron import Bf16Optimizer
from memcalc.engine.parallel.megatron.megatron import MegatronStates
from memcalc.engine.parallel.megatron.nanotron import NanotronStates
from memcalc.engine.plan import Plan
from memcalc.engine.states import multiplicity
from memcalc.engine.timing.exchanges_shards import Shard, parts_of, shards_of

#: 320 blocks of 65,536 elements a launch of a foreach kernel; groups of FSDP lie far below.
_FOREACH = 2


class Copied(NamedTuple):
    """Bytes moved in one direction of a micro-batch, by how many kernels."""

    op: str
    direction: str
    moved: Any
    kernels: int


def copies_of(plan: Plan) -> tuple[Copied, ...]:
    """What the plan's way of holding states copies in a micro-batch; () where nothing is divided."""
    strategy = plan.strategy
    if isinstance(strategy, Fsdp2):
        return _fsdp2(plan, strategy)
    if isinstance(strategy, Fsdp1):
        return _fsdp1(plan, strategy)
    batches = plan.resolved.grad_accum_steps
    if isinstance(strategy, Ddp):
        width = 4 if strategy.views else 2 + 2 + 4  # in and out of the bucket, and dividing there
        item = ITEMSIZE[plan.kernels.param_dtype]
        leaves = plan.structure(True)[0].leaves
        size, tensors = _elements(plan) * item, sum(leaf.requires_grad for leaf in leaves)
        return (Copied("buckets", "backward", width / 2 * size / batches, tensors // batches),)
    if isinstance(strategy, NanotronStates):
        size, tensors = _elements(plan) * (2 + 4 + 4), _tensors(plan)
        return (Copied("add_gradients", "backward", size, tensors),)
    if isinstance(strategy, Bf16Optimizer):
        size = _elements(plan) * ((2 + 4) + (4 + 4 + 4))  # to fp32; then add_ of it
        return (Copied("add_gradients", "backward", size, 2 * _tensors(plan)),)
    if isinstance(strategy, MegatronStates):
        item = ITEMSIZE[strategy.gradient_dtype]
        passes = 3 if plan.parallel.copies * plan.parallel.cp > 1 else 1
        return (
            Copied("gradient_buffer", "backward", passes * item * _elements(plan) / batches, 2),
        )
    return ()


def _elements(plan: Plan) -> int:
    structure, runs = plan.structure(plan.keeps_gradients)
    weights = multiplicity(runs)
    return sum(
        part.elements.value(plan.values) * weights[part.block] for part in parts_of(structure)
    )


def _tensors(plan: Plan) -> int:
    from memcalc.engine.states import all_leaves

    structure, runs = plan.structure(plan.keeps_gradients)
    return len(all_leaves(structure, runs))


def _fsdp2(plan: Plan, strategy: Fsdp2) -> tuple[Copied, ...]:
    """The shard is read as stored and written as computed; what arrived is read and written whole."""
    rows = []
    shards = shards_of(plan, strategy)
    stored, compute = ITEMSIZE[strategy.stored], ITEMSIZE[strategy.compute]
    for when in ("forward", "backward"):
        found = [s for s in shards if when == "forward" or (strategy.kept_on != 1 and not s.root)]
        size = sum(s.blocks * s.gathered * (_cast(s, stored, compute) + 2) for s in found)
        rows.append(Copied("unshard", when, size, _FOREACH * sum(s.blocks for s in found)))
    size = sum(s.blocks * s.reduced * (1 + compute / stored) for s in shards)
    rows.append(
        Copied("reduce_gradients", "backward", size, _FOREACH * sum(s.blocks for s in shards))
    )
    return tuple(rows)


def _cast(shard: Shard, stored: int, compute: int) -> float:
    """Passes over the gathered bytes that casting this rank's part of them takes."""
    return (1 + stored / compute) / shard.ranks


def _fsdp1(plan: Plan, strategy: Fsdp1) -> tuple[Copied, ...]:
    line = strategy.timeline
    shards = shards_of(plan, strategy)
    stored, compute = ITEMSIZE[line.stored], ITEMSIZE[line.compute]
    cast = sum(s.blocks * s.gathered * _cast(s, stored, compute) for s in shards)
    groups = sum(s.blocks for s in shards)
    flat = sum(s.blocks * (s.gathered * 2 + s.reduced * 2) for s in shards)
    return (
        Copied("unshard", "forward", cast, groups),
        Copied("reduce_gradients", "backward", flat, _FOREACH * groups),
    )
