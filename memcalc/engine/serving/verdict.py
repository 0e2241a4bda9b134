"""Whether a served model fits its GPU, and the largest batch and context that do.

transformers and llama.cpp fit when what they allocate, the CUDA context and communicators are within
what the device gives. vLLM takes a share of the device whatever it needs; it fits when the cache of all
sequences at their end is within what that share leaves beside weights, its profile run and the context.
Of several devices each must fit, and the one with the least room speaks for all; what lies on the host
must fit its memory where that is stated. Limits are found by bisection on that verdict alone, so they
agree with it at the boundary.
Checked by: unit/test_serving_limits.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final, NamedTuple

from memcalc.engine.bisection import last_holding
from memcalc.engine.device_side import Device
from memcalc.engine.serving.forward import Part, layer_kinds
from memcalc.engine.serving.memory import ServingMemory, serving_memory
from memcalc.engine.serving.serving_layout import Place, places_of
from memcalc.engine.serving.serving_plan import ServingPlan

MOST_SEQUENCES: Final = 1 << 20
MOST_POSITIONS: Final = 1 << 27


class Need(NamedTuple):
    """What one device must hold. pool_bytes: what an engine with a pool leaves for the cache; None: no pool.

    host_bytes: weights, cache and buffers on the host, of host_usable_bytes.
    """

    memory: ServingMemory
    allocated_bytes: int
    driver_bytes: int
    usable_bytes: int | None
    pool_bytes: int | None
    place: Place = Place("gpu", Part())
    host_bytes: int = 0
    host_usable_bytes: int | None = None

    @property
    def fits(self) -> bool | None:
        """Whether it fits; None without a GPU."""
        if self.usable_bytes is None:
            return None
        if self.host_usable_bytes is not None and self.host_bytes > self.host_usable_bytes:
            return False
        return self.room_bytes >= 0

    @property
    def room_bytes(self) -> int:
        """What is left on the device, below 0 where it does not fit."""
        if self.pool_bytes is not None:
            return self.pool_bytes - self.memory.cache_bytes
        return (self.usable_bytes or 0) - self.allocated_bytes - self.driver_bytes


#: Resident bytes of the weights on each device, in the order of the places.
Held = int | tuple[int, ...] | None


def needs_of(plan: ServingPlan, device: Device, weights: Held = None) -> list[Need]:
    """What every GPU needs, in the order their layers run; equal ones are computed once."""
    known: dict[object, Need] = {}
    found, on_host = [], host_bytes(plan, weights)
    for number, place in enumerate(plan.places):
        if place.host:
            continue
        held = weights[number] if isinstance(weights, tuple) else weights
        key = (_layers_of(plan, place), place.part.ends, held)
        if key not in known:
            known[key] = _need(plan.on(place), device, held)
        found.append(
            known[key]._replace(
                place=place,
                host_bytes=on_host,
                host_usable_bytes=plan.resolved.setup.host_memory_bytes,
            )
        )
    if not found:  # all on the host; the GPU multiplies prompts there
        nothing = ServingMemory(0, 0, 0, {})
        stated = plan.resolved.setup.host_memory_bytes
        found.append(
            Need(nothing, 0, device.context_bytes, device.usable_bytes, None, Place("gpu", Part()),
                 on_host, stated)
        )  # fmt: skip
    return found


def _layers_of(plan: ServingPlan, place: Place) -> object:
    """What tells one device's layers from another's: their kinds in order."""
    return (
        None if place.part.layers is None else layer_kinds(plan.config)[slice(*place.part.layers)]
    )


def need_of(plan: ServingPlan, device: Device, weights: Held = None) -> Need:
    """What the GPU with the least room needs on this device."""
    return min(needs_of(plan, device, weights), key=lambda need: need.room_bytes)


def host_bytes(plan: ServingPlan, weights: Held = None) -> int:
    """Bytes that lie on the host: weights, cache, and the largest of its passes' buffers."""
    found = buffers = 0
    for number, place in enumerate(plan.places):
        if place.host:
            held = weights[number] if isinstance(weights, tuple) else None
            memory = serving_memory(plan.on(place)._replace(draft=None), held)
            own = memory.weights_bytes + memory.cache_bytes
            found += own
            buffers = max(buffers, memory.peak.bytes - own)
    return found + buffers


def _need(plan: ServingPlan, device: Device, weights: int | None) -> Need:
    """What one device needs."""
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
    """Driver memory of the ranks' communicators: as training's, never measured here.

    llama.cpp copies between its GPUs without any; replicas of a model without experts do not talk.
    """
    layout = plan.layout
    if plan.config.moe is None and layout.copies > 1:
        layout = replace(layout, dp=1, gpus=layout.inner)
    if layout.size == 1 or plan.resolved.engine.name == "llama.cpp":
        return 0
    from memcalc.engine.parallel.network.communication import (
        communication_bytes,
        communicators,
        fabric_of,
    )

    fabric = fabric_of(None, layout.gpus_per_node)
    found = communicators(layout, "torch", fabric, 0, False, plan.config.moe is not None)
    return communication_bytes(found, fabric).expected


def largest(fits: Callable[[int], bool], most: int, least: int = 1) -> int:
    """The largest number from `least` to `most` that fits, where all below it do; 0 where none does."""
    return last_holding(fits, least, most + 1) or 0


def max_batch(plan: ServingPlan, device: Device, weights: Held = None) -> int | None:
    """Most sequences at the plan's context; None without a GPU."""
    if device.usable_bytes is None:
        return None
    context = plan.resolved.context

    def fits(batch: int) -> bool:
        return bool(need_of(plan.sized(batch, context), device, weights).fits)

    return largest(fits, MOST_SEQUENCES)


def max_context(plan: ServingPlan, device: Device, weights: Held = None) -> int | None:
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


def fitted(plan: ServingPlan, device: Device) -> ServingPlan:
    """The plan with the most layers on the GPUs that fit, where `--gpu-layers auto` asks for that.

    Without a GPU all are. 0 where not one layer fits.
    """
    resolved = plan.resolved
    if resolved.setup.gpu_layers != "auto" or device.usable_bytes is None:
        return plan
    layers = plan.config.num_hidden_layers

    def placed(count: int) -> ServingPlan:
        return plan._replace(places=places_of(plan.config, resolved, plan.layout, count))

    def fits(count: int) -> bool:
        return need_of(placed(count), device).room_bytes >= 0

    return placed(largest(fits, layers + 1))
