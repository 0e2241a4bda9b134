"""Whether a served model fits its GPU, and the largest batch and context that do.

transformers and llama.cpp fit when what they allocate, the CUDA context and communicators are within
what the device gives. vLLM takes a share of the device whatever it needs; it fits when the cache of all
sequences at their end is within what that share leaves beside weights, its profile run and the context.
Limits are found by bisection on that verdict alone, so they agree with it at the boundary.
Checked by: unit/test_serving_limits.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from memcalc.engine.device_side import Device
from memcalc.engine.serving.memory import ServingMemory, serving_memory
from memcalc.engine.serving.serving_plan import ServingPlan

MOST_SEQUENCES: Final = 1 << 20
MOST_POSITIONS: Final = 1 << 27


class Need(NamedTuple):
    """What one GPU must hold. pool_bytes: what an engine with a pool leaves for the cache; None: no pool."""

    memory: ServingMemory
    allocated_bytes: int
    driver_bytes: int
    usable_bytes: int | None
    pool_bytes: int | None

    @property
    def fits(self) -> bool | None:
        """Whether it fits; None without a GPU."""
        if self.usable_bytes is None:
            return None
        if self.pool_bytes is not None:
            return self.memory.cache_bytes <= self.pool_bytes
        return self.allocated_bytes + self.driver_bytes <= self.usable_bytes


def need_of(plan: ServingPlan, device: Device, weights: int | None = None) -> Need:
    """What a rank of this plan needs on this device."""
    memory = serving_memory(plan, weights)
    engine = plan.resolved.engine
    workspace = int(engine.values["workspaces"]) * device.workspace_bytes
    allocated = memory.peak.bytes + workspace
    driver = device.context_bytes + communicator_bytes(plan)
    pool = None
    if plan.resolved.cache == "paged" and device.usable_bytes is not None:
        stated = plan.resolved.setup.gpu_memory_utilization
        share = float(engine.values["gpu_memory_utilization"]) if stated is None else stated
        beside = allocated - memory.cache_bytes + driver
        pool = max(0, int(share * device.usable_bytes) - beside)
    return Need(memory, allocated, driver, device.usable_bytes, pool)


def communicator_bytes(plan: ServingPlan) -> int:
    """Driver memory of the communicator of tp ranks: as training's, never measured here."""
    if plan.layout.tp == 1:
        return 0
    from memcalc.engine.parallel.network.communication import (
        communication_bytes,
        communicators,
        fabric_of,
    )

    fabric = fabric_of(None, plan.layout.gpus_per_node)
    found = communicators(plan.layout, "torch", fabric, 0, False, False)
    return communication_bytes(found, fabric).expected


def largest(fits: Callable[[int], bool], most: int, least: int = 1) -> int:
    """The largest number from `least` to `most` that fits, where all below it do; 0 where none does."""
    if not fits(least):
        return 0
    low = least
    high = low * 2
    while high <= most and fits(high):
        low, high = high, high * 2
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low


def max_batch(plan: ServingPlan, device: Device, weights: int | None = None) -> int | None:
    """Most sequences at the plan's context; None without a GPU."""
    if device.usable_bytes is None:
        return None
    context = plan.resolved.context

    def fits(batch: int) -> bool:
        return bool(need_of(plan.sized(batch, context), device, weights).fits)

    return largest(fits, MOST_SEQUENCES)


def max_context(plan: ServingPlan, device: Device, weights: int | None = None) -> int | None:
    """Longest context of the plan's batch, by memory alone (learned positions end it); None: no GPU."""
    if device.usable_bytes is None:
        return None
    batch, config = plan.resolved.batch, plan.config
    most = MOST_POSITIONS
    if config.position_embedding == "learned":
        most = config.max_position_embeddings

    def fits(context: int) -> bool:
        return bool(need_of(plan.sized(batch, context), device, weights).fits)

    return largest(fits, most, 2)
