"""infer: from what the user states about serving to memory, time, a verdict, and the limits."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from memcalc.engine.device_side import Device, device_from
from memcalc.engine.results import ModelSummary
from memcalc.engine.serving.cache_use import block_size, bytes_a_token, held_cache_bytes
from memcalc.engine.serving.curves import Prepared, limits
from memcalc.engine.serving.forward import Part
from memcalc.engine.serving.infer_time import Host, serving_time
from memcalc.engine.serving.infer_words import advice, assumptions, notes, setup_dict
from memcalc.engine.serving.replay import reserved_bytes
from memcalc.engine.serving.serving_plan import ServingPlan, serving_plan
from memcalc.engine.serving.serving_results import ServingEstimate, ServingMemoryEstimate
from memcalc.engine.serving.verdict import (
    Need,
    communicator_bytes,
    fitted,
    needs_of,
)
from memcalc.errors import ConfigError
from memcalc.inputs.choose_rates import AUTO, cpu_device
from memcalc.inputs.clusters import Cluster, load_cluster
from memcalc.inputs.hardware import Gpu
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.models import load_model
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.rates import DEFAULT
from memcalc.inputs.serving import ServingSetup, resolve_serving
from memcalc.inputs.serving_host import host_of
from memcalc.units import MIB

#: What more is an error of typing.
MAX_BYTES: Final = 1 << 53
#: As estimate's band: the smallest context measured, and kernels that load as they are needed.
_CONTEXT_LOW_BYTES: Final = 426 * MIB
_KERNEL_IMAGES_BYTES: Final = 300 * MIB


def infer(
    model: ModelConfig | str,
    setup: ServingSetup | None = None,
    *,
    parallel: ParallelPlan | None = None,
    gpu: Gpu | Cluster | str | Device | None = None,
) -> ServingEstimate:
    """Memory and time of serving a model: on one GPU, on several, on the host, or on both.

    model: a ModelConfig, a profile's name, or a path to a config.json. Without a GPU there is no verdict,
    no limit and no time. Raises ConfigError when the inputs cannot be used; "does not fit" is a result.
    Checked by: oracle/test_serving.py, oracle/test_kv_cache.py, published/test_serving.py, cli/test_infer.py.
    """
    made = prepared(model, setup, parallel=parallel, gpu=gpu)
    plan, device, host, held = made
    needs = needs_of(plan, device, held)
    need = min(needs, key=lambda one: one.room_bytes)
    if need.allocated_bytes > MAX_BYTES:
        raise ConfigError(f"batch x context: got {need.allocated_bytes} bytes; rule: at most 2^53")
    stages = tuple(_memory(plan, device, one) for one in needs)
    memory = stages[needs.index(need)]
    time, about_time = serving_time(plan, device, host, held)
    batches, longest = limits(made)
    totals = _held(plan, need, held)
    return ServingEstimate(
        model=_summary(plan._replace(layout=ParallelPlan(), part=Part())),
        setup=setup_dict(plan, device),
        weights_bytes=totals[0],
        kv_cache_bytes=totals[1],
        kv_bytes_per_token=totals[2],
        memory=memory,
        stages=stages,
        host_bytes=need.host_bytes,
        time=time,
        max_batch=batches,
        max_context=longest,
        fits=need.fits,
        verdict=_verdict(need, memory),
        assumptions=(*assumptions(plan, device, host.said), *about_time),
        notes=(*device.notes, *plan.notes, *notes(plan, need, longest)),
        advice=advice(plan, need, batches, longest),
    )


def prepared(
    model: ModelConfig | str,
    setup: ServingSetup | None = None,
    *,
    parallel: ParallelPlan | None = None,
    gpu: Gpu | Cluster | str | Device | None = None,
) -> Prepared:
    """The plan of what `infer` is asked for, with its devices and the bytes of the weights on each."""
    config = load_model(model) if isinstance(model, str) else model
    asked = setup or ServingSetup()
    device = device_from(gpu)
    host = _host(asked, device)
    if asked.device == "cpu":
        device, host = _on_cpu(asked, host, device)
    plan = fitted(serving_plan(resolve_serving(asked, config), parallel), device)
    held = tuple(plan.on(place).weights().resident_bytes for place in plan.places)
    return Prepared(plan, device, host, held)


def _held(plan: ServingPlan, need: Need, held: tuple[int, ...]) -> tuple[int, int, int]:
    """Bytes of weights, of the cache and of a token in it: of the GPU that speaks for all, and the host."""
    memory = need.memory
    weights, cache, token = memory.weights_bytes, memory.cache_bytes, memory.token_bytes
    for place, size in zip(plan.places, held, strict=True):
        if place.host:
            own = plan.on(place)._replace(draft=None)
            weights += size
            cache += held_cache_bytes(own)
            token += bytes_a_token(own)
    return weights, cache, token


def _verdict(need: Need, memory: ServingMemoryEstimate) -> str | None:
    if need.fits is None:
        return None
    tight = memory.high_bytes is not None and memory.high_bytes > (need.usable_bytes or 0)
    return "does-not-fit" if not need.fits else "tight" if tight else "fits"


def _host(setup: ServingSetup, device: Device) -> Host:
    """The CPU: its memory as stated, else the cluster's."""
    memory = setup.host_memory_bytes
    if memory is None and device.cluster is not None:
        memory = load_cluster(device.cluster.slug).host_memory_bytes
    cpu, said = host_of(memory, setup.host_bytes_per_s)
    return Host(cpu, tuple(said))


def _on_cpu(setup: ServingSetup, host: Host, device: Device) -> tuple[Device, Host]:
    """The host as the device that serves, or the CPU of a named calibration; a GPU too is refused."""
    if device.gpu is not None:
        if device.gpu.architecture == "cpu":
            return device, host
        raise ConfigError(f"device: got cpu with gpu {device.gpu.slug}; rule: one of the two")
    cpu, calibration = host.cpu, device.calibration
    if calibration not in (DEFAULT, AUTO):
        if setup.host_bytes_per_s is not None:
            raise ConfigError(
                f"host_bandwidth: got {setup.host_bytes_per_s / 1e9:g} GB/s with calibration "
                f"{calibration}; rule: one of the two"
            )
        measured = cpu_device("", 0, calibration)
        assert measured is not None  # a named one is there, or an error
        cpu = replace(measured[0], total_bytes=cpu.total_bytes or measured[0].total_bytes)
        host = Host(cpu, (f"host: {cpu.name}, as calibration {measured[1].stem} measured it",))
        return Device(cpu, cpu.total_bytes or None, 0, 0, (), (), None, calibration), host
    return Device(cpu, cpu.total_bytes or None, 0, 0, (), (), None, DEFAULT), host


def _memory(plan: ServingPlan, device: Device, need: Need) -> ServingMemoryEstimate:
    """The memory of one device."""
    own, engine = plan.on(need.place), plan.resolved.engine
    if not need.memory.passes:
        return _nothing(need)
    peak = need.memory.peak
    workspaces = (device.workspace_bytes,) * int(engine.values["workspaces"])
    between = communicator_bytes(plan)
    allocated, reserved = need.allocated_bytes, need.allocated_bytes
    breakdown = peak.breakdown(need.memory.weights_bytes)
    if _is_played(plan):
        reserved = max(allocated, reserved_bytes(own, own.weights(), workspaces))
    elif need.pool_bytes is not None and need.fits:
        free = need.pool_bytes - need.memory.cache_bytes
        allocated, reserved = allocated + free, reserved + free
        breakdown["free_pool"] = free
    breakdown["workspace"] = sum(workspaces)
    used = reserved + need.driver_bytes
    low = allocated - sum(workspaces) + min(device.context_bytes, _CONTEXT_LOW_BYTES)
    loads = device.context_bytes > 0 and need.pool_bytes is None
    usable, pool = need.usable_bytes, need.pool_bytes
    spare = None if usable is None else usable - used
    return ServingMemoryEstimate(
        peak_requested_bytes=peak.bytes,
        peak_allocated_bytes=allocated,
        peak_reserved_bytes=reserved,
        device_used_bytes=used,
        usable_bytes=usable,
        headroom_bytes=spare if pool is None else pool - need.memory.cache_bytes,
        low_bytes=low,
        high_bytes=used + (_KERNEL_IMAGES_BYTES if loads else 0),
        peak_at=peak.instant.name,
        breakdown=breakdown,
        reserved_overhead_bytes=reserved - allocated,
        context_bytes=device.context_bytes,
        communication_bytes=between,
        phases={name: one.bytes for name, one in need.memory.passes.items()},
        pool_bytes=pool,
        pool_tokens=None if pool is None else _tokens(own, need, pool),
        place=need.place.name,
        weights_bytes=need.memory.weights_bytes,
        kv_cache_bytes=need.memory.cache_bytes,
    )


def _is_played(plan: ServingPlan) -> bool:
    """Whether PyTorch's allocator is simulated: transformers on a GPU with a cache in 16 bits."""
    resolved = plan.resolved
    plain = resolved.cache in ("grow", "tuple", "static") and not resolved.drafted
    return resolved.engine.name == "transformers" and plain and resolved.setup.device == "gpu"


def _nothing(need: Need) -> ServingMemoryEstimate:
    """A GPU that holds no layer."""
    used, usable = need.driver_bytes, need.usable_bytes
    spare = None if usable is None else usable - used
    return ServingMemoryEstimate(
        0, 0, 0, used, usable, spare, used, used, "nothing", {}, 0, used, 0, {}, place="gpu"
    )  # fmt: skip


def _tokens(plan: ServingPlan, need: Need, pool: int) -> int:
    """Positions a pool has room for, in whole blocks; windows are not taken into account."""
    block, each = block_size(plan), bytes_a_token(plan)
    return pool // (each * block) * block if each else 0


def _summary(plan: ServingPlan) -> ModelSummary:
    one, weights = plan.config, plan.weights()
    experts = [held for held in weights.leaves if ".expert_" in held.name]
    routed = sum(held.elements for held in experts)
    active = weights.parameters - routed
    if one.moe is not None:
        active += routed * one.moe.num_experts_per_tok // one.moe.num_experts
    return ModelSummary(
        name=one.name,
        model_type=one.model_type,
        parameters=weights.parameters,
        active_parameters=active,
        trainable_parameters=0,
        num_hidden_layers=one.num_hidden_layers,
        parameter_tensors=len(weights.leaves),
    )
