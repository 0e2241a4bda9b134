"""Memory of one rank on its GPU: the four numbers, their breakdown and band, and whether it fits."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from memcalc.engine.allocator.replay import AllocatorResult, simulate
from memcalc.engine.allocator.streams import simulate_streams
from memcalc.engine.device_side import Device
from memcalc.engine.host_memory import host_of
from memcalc.engine.memory import StepMemory, step_memory
from memcalc.engine.memory_band import widened
from memcalc.engine.parallel.network.communication import (
    CommunicationBytes,
    communication_bytes,
    communicators,
    fabric_of,
)
from memcalc.engine.plan import Plan
from memcalc.engine.program import Stream, training_program
from memcalc.engine.results import Breakdown, MemoryEstimate, StagePlace
from memcalc.errors import ConfigError
from memcalc.units import MIB

#: What needs more on one GPU is a typing error; the allocator's addresses end at 2^53.
MAX_BYTES = 1 << 50
#: A matmul handle is made per thread: the forward's and autograd's. Not yet measured.
WORKSPACES = 2
#: Width of the context's uncertainty: the smallest measured, and what kernels add as they load.
_CONTEXT_LOW_BYTES = 426 * MIB
_KERNEL_IMAGES_BYTES = 300 * MIB


class RankMemory(NamedTuple):
    """One pipeline stage's rank (the only one without stages) and whether it fits; None: no GPU."""

    step: StepMemory
    memory: MemoryEstimate
    fits: bool | None
    communication: CommunicationBytes


def rank_memory(plan: Plan, stage: int, device: Device, allocator: bool) -> RankMemory:
    """Memory of the rank of this stage that needs most."""
    step, stream, place = _played(plan, stage, device.workspace_bytes, allocator)
    if step.peak_bytes > MAX_BYTES:
        raise ConfigError(
            f"micro-batch x seq: got {plan.resolved.micro_batch_size} x {plan.resolved.seq_len}, "
            f"which needs {step.peak_bytes} bytes on one GPU; rule: at most 2^50"
        )
    simulated = None
    if stream:
        others = tuple(stream.streams.items())
        simulated = _simulated(tuple(stream.events), tuple(stream.sizes), others, plan.expandable)
    between = communication_of(plan, stage, device)
    host = host_of(plan, _gpus_of_node(plan, device))
    memory = _memory(step, plan, device, simulated, between)
    memory = memory._replace(stage=place, host=host, host_bytes=host.total_bytes)
    return RankMemory(step, memory, _fits(memory, device, stream), between)


def _gpus_of_node(plan: Plan, device: Device) -> int:
    """GPUs that share a host's memory."""
    known = 8 if device.cluster is None else device.cluster.gpus_per_node
    return plan.parallel.gpus_per_node or known


@lru_cache(maxsize=8)
def _simulated(
    events: tuple[int, ...],
    sizes: tuple[int, ...],
    streams: tuple[tuple[int, int], ...],
    expandable: bool,
) -> AllocatorResult:
    """The allocator's replay; stages in the middle of a pipeline are often the same."""
    return simulate_streams(events, sizes, dict(streams), expandable)


def _played(
    plan: Plan, stage: int, workspace_bytes: int, allocator: bool
) -> tuple[StepMemory, Stream | None, StagePlace | None]:
    """The step of a stage, its events for the allocator, and what the stage is."""
    workspaces = (workspace_bytes,) * WORKSPACES
    if plan.parallel.pp == 1:
        stream = training_program(plan, workspaces) if allocator else None
        return step_memory(plan), stream, None
    from memcalc.engine.parallel.pipeline.pipeline import stage_of
    from memcalc.engine.parallel.pipeline.pipeline_memory import place_of, stage_memory
    from memcalc.engine.parallel.pipeline.pipeline_stream import stage_program

    one = stage_of(plan, stage)
    step = stage_memory(one)
    stream = stage_program(one, workspaces) if allocator else None
    return step, stream, place_of(one, step)


def communication_of(plan: Plan, stage: int, device: Device) -> CommunicationBytes:
    """The driver's memory for this rank's communicators."""
    parallel = plan.parallel
    if parallel.size == 1:
        return CommunicationBytes(0, 0, 0)
    fabric = fabric_of(device.cluster, parallel.gpus_per_node)
    config = plan.config
    found = communicators(
        parallel, plan.resolved.setup.base, fabric, stage, config.tie_word_embeddings,
        config.moe is not None,
    )  # fmt: skip
    return communication_bytes(found, fabric)


def _memory(
    step: StepMemory,
    plan: Plan,
    device: Device,
    simulated: AllocatorResult | None,
    between: CommunicationBytes,
) -> MemoryEstimate:
    workspace = device.workspace_bytes * WORKSPACES
    requested = step.peak_bytes
    allocated = simulated.peak_allocated_bytes if simulated else requested + workspace
    reserved = simulated.peak_reserved_bytes if simulated else None
    used, low, high = used_bytes(plan, device, between, allocated, reserved)
    usable = device.usable_bytes
    held = step.states
    return MemoryEstimate(
        peak_requested_bytes=requested,
        peak_allocated_bytes=allocated,
        peak_reserved_bytes=reserved,
        device_used_bytes=used,
        usable_bytes=usable,
        headroom_bytes=None if usable is None or used is None else usable - used,
        low_bytes=low,
        high_bytes=high,
        peak_at=step.peak.name,
        peak_primitive=step.peak.primitive,
        breakdown=Breakdown(
            **step.breakdown, workspace=workspace, rounding=allocated - requested - workspace
        ),
        reserved_overhead_bytes=None if reserved is None else reserved - allocated,
        context_bytes=device.context_bytes,
        communication_bytes=between.expected,
        phases=step.phases,
        phase_peaks_at={name: instant.name for name, instant in step.instants.items()},
        states={
            "parameters": held.parameter_bytes,
            "gradients": held.gradient_bytes,
            "optimizer": held.optimizer_bytes,
            "master": held.master_bytes,
        },
        saved_for_backward_bytes=step.saved_bytes,
        saved_per_layer_bytes=step.saved_per_layer_bytes,
        host_bytes=0,
    )


def used_bytes(
    plan: Plan, device: Device, between: CommunicationBytes, allocated: Any, reserved: Any
) -> tuple[Any, Any, Any]:
    """What the driver reports for the process, and its band (low, high); sizes may be arrays.

    All None without reserved bytes.
    """
    if reserved is None:
        return None, None, None
    used = reserved + device.context_bytes + between.expected
    return used, *widened(used, *open_bytes(plan, device, between, allocated, used))


def open_bytes(
    plan: Plan, device: Device, between: CommunicationBytes, allocated: Any, used: Any
) -> tuple[Any, Any]:
    """The least and the most that figures which are open leave of driver-used bytes."""
    low = allocated - device.workspace_bytes + min(device.context_bytes, _CONTEXT_LOW_BYTES)
    high = used + _KERNEL_IMAGES_BYTES + _attention_scratch(plan)
    return low + between.low, high + between.high - between.expected


def _attention_scratch(plan: Plan) -> int:
    """What a fused attention backward may allocate inside: fp32 dQ, and dK, dV a query head each.

    Expected from the kernels' source, not measured, so it widens the band and is not in the estimate.
    """
    if plan.kernels.attention == "eager":
        return 0
    config = plan.config
    wide = plan.resolved.tokens * config.num_attention_heads * config.head_dim
    grouped = config.num_key_value_heads < config.num_attention_heads
    return wide * 4 + (wide * 2 * 2 if grouped else 0)


def _fits(memory: MemoryEstimate, device: Device, stream: Stream | None) -> bool | None:
    """Whether the process fits, the allocator releasing cached blocks where that helps."""
    usable = memory.usable_bytes
    if usable is None:
        return None
    driver = device.context_bytes + memory.communication_bytes
    if memory.peak_allocated_bytes + driver > usable:
        return False
    if stream is None or memory.device_used_bytes is None or memory.device_used_bytes <= usable:
        return True
    capacity = usable - driver
    return not simulate(stream.events, stream.sizes, capacity).out_of_memory
