"""What DeepSpeed keeps on the host: ZeRO-Offload in memory, ZeRO-Infinity on disks with buffers.

Symbols: S elements of this rank's part. Stages 1 and 2: fp32 master copies (4S, pinned always),
moments (8S of Adam, pageable), fp32 gradients (4S), 16-bit parameters on their way back (2S), a buffer
as large as the largest gradient, and with several micro-batches 16-bit gradients of every parameter the
part touches. Stage 3: master copies and moments (pageable), fp32 gradients (4S), 16-bit gradients (2S),
parameters (2S, pinned always; frozen ones each in a tensor of its own, which is not). What is not marked
is pinned where pin_memory says so. Disks hold master
copies, moments and fp32 gradients sub-group by sub-group, in memory is a pool of pinned buffers as large
as the largest; parameters on disk beyond max_in_cpu elements, with a pool of their own.
Source: DeepSpeed 0.18.2, runtime/zero/stage_1_and_2.py (__init__, initialize_optimizer_states,
async_accumulate_grad_in_cpu_via_gpu), runtime/zero/stage3.py (_create_fp32_partitions,
initialize_optimizer_states, _setup_for_real_optimizer, _create_param_groups_fp16_flat_cpu_memory),
runtime/swap_tensor/optimizer_utils.py, partitioned_param_swapper.py, ops/adam/cpu_adam.py.
Checked by: unit/test_offload.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memcalc.engine.dtypes import ITEMSIZE
from memcalc.engine.optimizer import state_tensors
from memcalc.engine.parallel.deepspeed.zero_buckets import Flat
from memcalc.engine.parallel.deepspeed.zero_modules import parameters_of
from memcalc.engine.parallel.strategy import HostBlock
from memcalc.engine.sizes import product
from memcalc.engine.states import all_leaves
from memcalc.engine.tensors import Tensor

if TYPE_CHECKING:
    from memcalc.engine.parallel.deepspeed.deepspeed import DeepSpeed
    from memcalc.engine.plan import Plan


def host_blocks(strategy: DeepSpeed, plan: Plan) -> tuple[HostBlock, ...]:
    """The blocks of one rank; of stages 1 and 2 those of the rank whose part touches most."""
    structure, runs = plan.structure(strategy.persistent_gradients)
    flats = strategy.flat_parts(all_leaves(structure, runs))
    blocks = _stages12(strategy, plan) if strategy.stage < 3 else _stage3(strategy, plan, flats)
    if strategy.offload.optimizer == "nvme":
        return (*blocks, *_swapped(strategy, plan, flats))
    pinned_masters = strategy.stage < 3
    for flat in flats:
        blocks += _states(plan, flat, pinned_masters)
        blocks.append(HostBlock("gradients", _bytes(plan, flat), strategy.offload.pinned))
    return tuple(blocks)


def _bytes(plan: Plan, flat: Tensor) -> int:
    """Bytes of a flat fp32 tensor."""
    return flat.numel.value(plan.values) * ITEMSIZE["fp32"]


def _states(plan: Plan, flat: Tensor, pinned: bool) -> list[HostBlock]:
    """Master copy (pinned or not) and moments (not) of one flat tensor."""
    sizes = [
        product(shape).value(plan.values) * ITEMSIZE[dtype]
        for shape, dtype in state_tensors(flat, plan.optimizer)
    ]
    first = 1 if plan.optimizer.master else 0
    masters = [HostBlock("optimizer", size, pinned) for size in sizes[:first]]
    return [*masters, *(HostBlock("optimizer", size) for size in sizes[first:])]


def _stages12(strategy: DeepSpeed, plan: Plan) -> list[HostBlock]:
    """Buffers beside the part's states."""
    width, pinned = ITEMSIZE[strategy.dtype], strategy.offload.pinned
    flat = Flat(strategy.parameters, strategy.ranks)
    blocks = [
        HostBlock("buffers", flat.part * width, pinned),
        HostBlock("buffers", max(flat.sizes.values()) * width, pinned),
    ]
    if strategy.batches > 1:
        most = max(range(strategy.ranks), key=flat.touched)
        blocks += [
            HostBlock("gradients", size * width, pinned)
            for name, size in flat.sizes.items()
            if flat.owned(most, name)
        ]
    return blocks


def _stage3(strategy: DeepSpeed, plan: Plan, flats: list[Tensor]) -> list[HostBlock]:
    """16-bit gradients, and parameters where they are on the host too."""
    width = ITEMSIZE[strategy.dtype]
    elements = sum(-(-size // strategy.ranks) for _, size in strategy.parameters)
    blocks = [HostBlock("gradients", elements * width, strategy.offload.pinned)]
    if strategy.offload.parameters == "cpu":
        blocks.append(HostBlock("parameters", elements * width, True))
        blocks += [
            HostBlock("parameters", -(-size // strategy.ranks) * width, strategy.offload.pinned)
            for name, size in parameters_of(strategy.modules)
            if name in strategy.frozen
        ]
    elif strategy.offload.parameters == "nvme":
        blocks += _parameters_on_disk(strategy, elements, width)
    return blocks


def _parameters_on_disk(strategy: DeepSpeed, elements: int, width: int) -> list[HostBlock]:
    """A flat buffer of up to max_in_cpu elements holds the first sub-groups; the rest is on disk.

    Beside it a pool of buffers, and room for the largest sub-group's whole parameters.
    """
    limits = strategy.limits
    flat = min(elements, limits.offload_param_max_in_cpu)
    groups = _sub_groups(strategy)
    kept = 0
    while groups and kept + groups[0][1] <= flat:
        kept += groups.pop(0)[1]
    pool = limits.offload_param_buffer_count * limits.offload_param_buffer_size
    blocks = [
        HostBlock("parameters", flat * width, True, unused_bytes=(flat - kept) * width),
        HostBlock("buffers", pool * width, True),
    ]
    if groups:
        largest = max(whole for whole, _ in _sub_groups(strategy))
        blocks.append(HostBlock("parameters", (elements - kept) * width, nvme=True))
        blocks.append(HostBlock("buffers", largest * width, True))
    return blocks


def _sub_groups(strategy: DeepSpeed) -> list[tuple[int, int]]:
    """Elements of each sub-group: of whole parameters, of this rank's parts."""
    groups = []
    whole = part = 0
    for _, size in strategy.parameters:
        whole, part = whole + size, part - (-size // strategy.ranks)
        if part >= strategy.limits.sub_group_size:
            groups.append((whole, part))
            whole = part = 0
    return [*groups, (whole, part)] if part else groups


def _swapped(strategy: DeepSpeed, plan: Plan, flats: list[Tensor]) -> list[HostBlock]:
    """Master copies, moments and fp32 gradients on disk, and the pool they pass through."""
    blocks = [
        HostBlock("optimizer", block.size_bytes, nvme=True)
        for flat in flats
        for block in _states(plan, flat, False)
    ]
    blocks += [HostBlock("gradients", _bytes(plan, flat), nvme=True) for flat in flats]
    largest = max(_bytes(plan, flat) for flat in flats)
    count = strategy.limits.offload_optimizer_buffer_count
    return [*blocks, HostBlock("buffers", largest, True, times=count)]
