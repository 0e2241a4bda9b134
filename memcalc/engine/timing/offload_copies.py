"""What offload moves in a step of one rank: copies over the host's link, bytes in the host's memory.

S: elements of this rank's part, w: bytes of a parameter as it is stored.
- DeepSpeed, stage 3: gradients w S to the host and back in every micro-batch (they are summed on the
  GPU), in the last one 4 S more to the host; parameters w S to the GPU ahead of forward and of backward
  where they wait on the host, else once they are stepped. Stages 1 and 2: gradients 4 S in the last
  micro-batch, parameters w S once they are stepped; stage 2 sums micro-batches by way of the GPU.
- FSDP2's CPUOffloadPolicy: parts w S to the GPU before each gather of a block, gradients w S to the host
  in every micro-batch; from the second on they are added there.
- Activations: what waits on the host goes there in forward and comes back in backward.
Beside compute run copies ahead of a block's gather; pinned gradients that leave on a stream of their own
(FSDP2's first micro-batch, stage 3, stage 2 with overlap_comm). What is pageable blocks the thread that
launches kernels; save_on_cpu copies on the stream that computes. Not here: the activations that
torchtune's hook takes, which run beside compute on streams of their own.
On the host one kernel reads and writes master copies and states, and reads gradients, which are scaled
before; PyTorch loops over operators instead unless the fused implementation is asked for.
Source: DeepSpeed 0.18.2, runtime/zero/stage3.py (partition_grads, step), stage_1_and_2.py
(copy_grads_in_partition, async_accumulate_grad_in_cpu_via_gpu, step); PyTorch 2.13,
distributed/fsdp/_fully_shard/_fsdp_collectives.py (foreach_reduce), _fsdp_param.py (all_gather_inputs),
autograd/graph.py (save_on_cpu), optim/optimizer.py (_default_to_fused_or_foreach).
Checked by: unit/test_offload_time.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Final, NamedTuple

from memcalc.engine.dtypes import ITEMSIZE
from memcalc.engine.optimizer import state_tensors
from memcalc.engine.parallel.data.fsdp2 import Fsdp2
from memcalc.engine.parallel.data.offload_fsdp2 import OffloadedFsdp2
from memcalc.engine.parallel.deepspeed.deepspeed import DeepSpeed
from memcalc.engine.parallel.deepspeed.zero_buckets import Flat, Parameters, part_elements
from memcalc.engine.parallel.deepspeed.zero_modules import parameters_of
from memcalc.engine.parallel.strategy import HostBlock, held
from memcalc.engine.plan import Plan
from memcalc.engine.sizes import number, product
from memcalc.engine.states import block_of, bytes_of_held, multiplicity
from memcalc.engine.tensors import Tensor

_FP32: Final = ITEMSIZE["fp32"]
#: DeepSpeed's optimizers that are one kernel on the host; others are torch.optim's there.
_ONE_KERNEL: Final = ("adamw", "lion")


class HostCopy(NamedTuple):
    """Copies of one kind, over a step. what: parameters | gradients | activations; to: gpu | host; when:
    forward | backward | step; beside: compute runs meanwhile.
    """

    what: str
    to: str
    when: str
    size_bytes: int
    calls: int
    pinned: bool = True
    beside: bool = False


class HostWork(NamedTuple):
    """What the host's processors and disks do in a step, in bytes read and written.

    kernel_bytes: of single passes when stepping; looped_bytes: of such passes that PyTorch's loop over
    operators stands for; backward_bytes: gradients added in backward; disk_bytes: on local disks.
    """

    kernel_bytes: int = 0
    looped_bytes: int = 0
    backward_bytes: int = 0
    disk_bytes: int = 0


def host_traffic(plan: Plan) -> tuple[tuple[HostCopy, ...], HostWork]:
    """Copies and host work of a step of one rank; none where nothing is offloaded."""
    strategy = plan.strategy
    copies = [*_activations(plan)] if plan.kernels.offloads else []
    work = HostWork()
    if isinstance(strategy, DeepSpeed) and strategy.offload.steps_on_host:
        copies += _deepspeed(strategy)
        work = _deepspeed_work(plan, strategy)
    elif isinstance(strategy, OffloadedFsdp2):
        parts = _parts_of(plan, strategy)
        copies += _fsdp2(plan, strategy, parts)
        work = _fsdp2_work(plan, parts)
    return tuple(one for one in copies if one.size_bytes), work


def _activations(plan: Plan) -> Iterator[HostCopy]:
    """What forward saves there, of all micro-batches."""
    structure, runs = plan.structure(*plan.peak_batch)
    times, values = multiplicity(runs), plan.values
    size = sum(each.value(values) * times[block] for block, each in structure.hosted)
    calls = sum(times[block] for block, _ in structure.hosted)
    batches, pinned = plan.resolved.grad_accum_steps, plan.parallel.pin_memory is not False
    for to, when in (("host", "forward"), ("gpu", "backward")):
        yield HostCopy("activations", to, when, batches * size, batches * calls, pinned)


def _part(strategy: DeepSpeed) -> int:
    """Elements of a rank's part of what trains: of whole parameters in stage 3, of one flat list below."""
    if strategy.stage < 3:
        return part_elements(sum(size for _, size in strategy.parameters), strategy.ranks)
    return sum(-(-size // strategy.ranks) for _, size in strategy.parameters)


@lru_cache(maxsize=64)
def _touched(parameters: Parameters, ranks: int) -> int:
    """Elements of the whole parameters that a rank's part touches, of the rank with most."""
    flat = Flat(parameters, ranks)
    return max(flat.touched(rank) for rank in range(ranks))


def _deepspeed(strategy: DeepSpeed) -> Iterator[HostCopy]:
    """ZeRO-Offload and ZeRO-Infinity."""
    batches, width, pinned = strategy.batches, ITEMSIZE[strategy.dtype], strategy.offload.pinned
    part, calls = _part(strategy), len(strategy.parameters)
    beside = pinned and (strategy.stage == 3 or strategy.limits.overlap_comm)
    gradients = HostCopy("gradients", "host", "backward", _FP32 * part, calls, pinned, beside)
    yield gradients
    summed, rounds = part, batches
    if strategy.stage < 3:
        summed = _touched(strategy.parameters, strategy.ranks)
        rounds = batches - 1 if strategy.stage == 2 else 0
    each = gradients._replace(size_bytes=rounds * width * summed, calls=rounds * calls)
    yield each
    yield each._replace(to="gpu")
    if not strategy.offload.holds_parameters:
        yield HostCopy("parameters", "gpu", "step", width * part, calls, strategy.stage < 3)
        return
    least = strategy.limits.stage3_param_persistence_threshold
    everything = parameters_of(strategy.modules)
    fetched = width * sum(-(-size // strategy.ranks) for _, size in everything if size > least)
    calls = batches * len(everything)
    for when in ("forward", "backward"):
        yield HostCopy("parameters", "gpu", when, batches * fetched, calls, True, True)


def _deepspeed_work(plan: Plan, strategy: DeepSpeed) -> HostWork:
    """Gradients scaled, the step, parameters narrowed."""
    part, width = _part(strategy), ITEMSIZE[strategy.dtype]
    structure, _ = plan.structure(plan.keeps_gradients)
    flat = held(structure.leaves[0], (number(part),), "fp32")
    stepped = 2 * _state_bytes(flat, plan) + _FP32 * part
    others = 2 * _FP32 * part + (_FP32 + width) * part
    disk = _disk_bytes(strategy.host(plan), strategy.batches) if _uses_disks(strategy) else 0
    if plan.optimizer.name in _ONE_KERNEL:
        return HostWork(kernel_bytes=stepped + others, disk_bytes=disk)
    return HostWork(kernel_bytes=others, looped_bytes=stepped, disk_bytes=disk)


def _uses_disks(strategy: DeepSpeed) -> bool:
    return "nvme" in (strategy.offload.optimizer, strategy.offload.parameters)


def _state_bytes(part: Tensor, plan: Plan) -> int:
    """Bytes of the optimizer's states and master copy of what a rank keeps of a parameter."""
    return sum(
        product(shape).value(plan.values) * ITEMSIZE[dtype]
        for shape, dtype in state_tensors(part, plan.optimizer)
    )


def _disk_bytes(blocks: Iterable[HostBlock], batches: int) -> int:
    """Bytes read and written: states and gradients once each, parameters for each fetch and once back."""
    return sum(
        block.size_bytes * block.times * (2 * batches + 1 if block.what == "parameters" else 2)
        for block in blocks
        if block.nvme
    )


class _Parts(NamedTuple):
    """Bytes and tensors of a rank's parts: of blocks, of the root; of what trains; states of that."""

    blocks: int
    root: int
    block_calls: int
    root_calls: int
    gradients: int
    gradient_calls: int
    states: int


def _parts_of(plan: Plan, strategy: OffloadedFsdp2) -> _Parts:
    structure, runs = plan.structure(plan.keeps_gradients)
    weights = multiplicity(runs)
    size, calls, trained, states = [0, 0], [0, 0], [0, 0], 0
    for leaf in structure.leaves:
        part, times = Fsdp2.parameter(strategy, leaf), weights[block_of(leaf)]
        root = block_of(leaf) < 0
        size[root] += times * bytes_of_held(part, plan.values)
        calls[root] += times
        if leaf.requires_grad:
            trained[0] += times * bytes_of_held(part, plan.values)
            trained[1] += times
            states += times * _state_bytes(part, plan)
    return _Parts(size[0], size[1], calls[0], calls[1], trained[0], trained[1], states)


def _fsdp2(plan: Plan, strategy: OffloadedFsdp2, parts: _Parts) -> Iterator[HostCopy]:
    """CPUOffloadPolicy. Blocks are gathered again for backward where forward frees them; the root not."""
    batches, pinned = plan.resolved.grad_accum_steps, strategy.pinned
    whole, count = parts.blocks + parts.root, parts.block_calls + parts.root_calls
    yield HostCopy("parameters", "gpu", "forward", batches * whole, batches * count, pinned, pinned)
    if strategy.kept_on is None:
        layers = len(plan.kinds)
        again = batches * (layers - strategy.keeps_last)
        yield HostCopy(
            "parameters", "gpu", "backward", again * parts.blocks // layers,
            again * parts.block_calls // layers, pinned, pinned,
        )  # fmt: skip
    size, calls = parts.gradients, parts.gradient_calls
    yield HostCopy("gradients", "host", "backward", size, calls, pinned, pinned)
    later = batches - 1
    yield HostCopy("gradients", "host", "backward", later * size, later * calls, pinned)


def _fsdp2_work(plan: Plan, parts: _Parts) -> HostWork:
    """torch.optim on the host, clipping before it; gradients of later micro-batches are added there."""
    later, gradients = plan.resolved.grad_accum_steps - 1, parts.gradients
    stepped = 3 * gradients + 2 * parts.states  # parameters twice, gradients once
    clipped = 3 * gradients if plan.optimizer.grad_clip else 0
    added = 3 * later * gradients
    if plan.optimizer.name == "none":
        return HostWork(clipped, 0, added)
    if plan.optimizer.impl == "fused":
        return HostWork(clipped + stepped, 0, added)
    return HostWork(clipped, stepped, added)
