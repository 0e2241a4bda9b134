"""infer: from what the user states about serving to memory, time, a verdict, and the limits."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

from memcalc.engine.device_side import Device, device_of
from memcalc.engine.quantised import Weights
from memcalc.engine.results import ModelSummary
from memcalc.engine.serving.cache_use import block_size, held_cache_bytes
from memcalc.engine.serving.pass_time import pricing
from memcalc.engine.serving.replay import reserved_bytes
from memcalc.engine.serving.request_time import request_time
from memcalc.engine.serving.serving_plan import ServingPlan, serving_plan
from memcalc.engine.serving.serving_results import (
    ServingEstimate,
    ServingMemoryEstimate,
    ServingTime,
)
from memcalc.engine.serving.verdict import (
    Need,
    communicator_bytes,
    max_batch,
    max_context,
    need_of,
)
from memcalc.engine.timing.topology import wires_of
from memcalc.errors import ConfigError
from memcalc.inputs.choose_rates import choose_rates
from memcalc.inputs.clusters import Cluster
from memcalc.inputs.hardware import Gpu
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.models import load_model
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.serving import ServingSetup, resolve_serving
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
    """Memory and time of serving a model on one GPU, or on the tp ranks that share each layer.

    model: a ModelConfig, a profile's name, or a path to a config.json. Without a GPU there is no verdict,
    no limit and no time. Raises ConfigError when the inputs cannot be used; "does not fit" is a result.
    Checked by: oracle/test_serving.py, oracle/test_kv_cache.py, published/test_serving.py, cli/test_infer.py.
    """
    config = load_model(model) if isinstance(model, str) else model
    plan = serving_plan(resolve_serving(setup or ServingSetup(), config), parallel)
    device = _device(gpu)
    weights = plan.weights()
    held = weights.resident_bytes
    need = need_of(plan, device, held)
    if need.allocated_bytes > MAX_BYTES:
        raise ConfigError(f"batch x context: got {need.allocated_bytes} bytes; rule: at most 2^53")
    memory = _memory(plan, device, need, weights)
    verdict = None
    if need.fits is not None:
        tight = memory.high_bytes is not None and memory.high_bytes > (need.usable_bytes or 0)
        verdict = "does-not-fit" if not need.fits else "tight" if tight else "fits"
    time, about_time = _time(plan, device, held)
    batches, longest = max_batch(plan, device, held), max_context(plan, device, held)
    return ServingEstimate(
        model=_summary(plan._replace(layout=ParallelPlan())),
        setup=_setup_dict(plan, device),
        weights_bytes=held,
        kv_cache_bytes=need.memory.cache_bytes,
        kv_bytes_per_token=need.memory.token_bytes,
        memory=memory,
        time=time,
        max_batch=batches,
        max_context=longest,
        fits=need.fits,
        verdict=verdict,
        assumptions=(*_assumptions(plan, device), *about_time),
        notes=(*device.notes, *plan.notes, *_beyond(plan, longest)),
        advice=_advice(plan, need, batches, longest),
    )


def _device(gpu: Gpu | Cluster | str | Device | None) -> Device:
    if isinstance(gpu, Device):
        return gpu
    return device_of(None, cluster=gpu) if isinstance(gpu, Cluster) else device_of(gpu)


def _memory(
    plan: ServingPlan, device: Device, need: Need, weights: Weights
) -> ServingMemoryEstimate:
    engine, peak = plan.resolved.engine, need.memory.peak
    workspaces = (device.workspace_bytes,) * int(engine.values["workspaces"])
    between = communicator_bytes(plan)
    allocated, reserved = need.allocated_bytes, need.allocated_bytes
    breakdown = peak.breakdown(weights.resident_bytes)
    if engine.name == "transformers":
        reserved = max(allocated, reserved_bytes(plan, weights, workspaces))
    elif need.pool_bytes is not None and need.fits:
        free = need.pool_bytes - need.memory.cache_bytes
        allocated, reserved = allocated + free, reserved + free
        breakdown["free_pool"] = free
    breakdown["workspace"] = sum(workspaces)
    used = reserved + need.driver_bytes
    low = allocated - sum(workspaces) + min(device.context_bytes, _CONTEXT_LOW_BYTES)
    high = used + (0 if need.pool_bytes is not None else _KERNEL_IMAGES_BYTES)
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
        high_bytes=high,
        peak_at=peak.instant.name,
        breakdown=breakdown,
        reserved_overhead_bytes=reserved - allocated,
        context_bytes=device.context_bytes,
        communication_bytes=between,
        phases={name: one.bytes for name, one in need.memory.passes.items()},
        pool_bytes=pool,
        pool_tokens=None if pool is None else _tokens(plan, need, pool),
    )


def _tokens(plan: ServingPlan, need: Need, pool: int) -> int:
    """Positions a pool has room for, in whole blocks; windows are not taken into account."""
    block = block_size(plan)
    return pool // (need.memory.token_bytes * block) * block


def _time(plan: ServingPlan, device: Device, weights: int) -> tuple[ServingTime, list[str]]:
    if device.gpu is None:
        return ServingTime(), []
    rates, note = choose_rates(device.gpu, device.calibration)
    wires = wires_of(device, plan.layout, rates)
    how = pricing(plan, rates, wires)
    found = request_time(plan, how)
    engine = plan.resolved.engine
    low, high = (float(engine.values[name]) for name in ("band_low", "band_high"))
    step = found.step
    bandwidth = device.gpu.memory_bandwidth_bytes_per_s
    resolved = plan.resolved
    middle = resolved.prompt + resolved.generated // 2
    read = weights - _embedding_bytes(plan)
    read += held_cache_bytes(plan.sized(resolved.batch, middle)) if middle > 1 else 0
    time = ServingTime(
        prefill_s=found.prefill_s,
        time_per_output_token_s=found.time_per_output_token_s,
        request_s=found.request_s,
        tokens_per_s=found.tokens_per_s,
        decode_tokens_per_s=found.decode_tokens_per_s,
        step_kernels_s=step.kernels_s,
        step_launch_s=step.launch_s,
        step_exchanges_s=step.exchanges_s,
        step_kernels=step.kernels,
        bound=step.bound,
        lower_bound_s=read / bandwidth,
        low_s=found.time_per_output_token_s * low,
        high_s=found.time_per_output_token_s * high,
        band=engine.sources["band_low"],
        calibration=rates.name,
    )
    said = [f"times: rates {rates.name}: {rates.basis}", *wires.assumptions]
    return time, [*said, *([note] if note else [])]


def _embedding_bytes(plan: ServingPlan) -> int:
    """Of the embedding only a row a token is read, unless the head reads all of it."""
    if plan.config.tie_word_embeddings:
        return 0
    held = next((one for one in plan.weights().leaves if one.role == "embedding"), None)
    return held.resident_bytes if held else 0


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


def _setup_dict(plan: ServingPlan, device: Device) -> dict[str, Any]:
    resolved = plan.resolved
    return {
        **asdict(resolved.setup),
        "context": resolved.context,
        "prompt": resolved.prompt,
        "generated": resolved.generated,
        "weights": plan.format.name,
        "kv_cache": resolved.kv_dtype,
        "cache": resolved.cache,
        "compute_dtype": resolved.compute_dtype,
        "attention": plan.timed.attention,
        "prefill_tokens": resolved.prefill_tokens,
        "cuda_graphs": resolved.cuda_graphs,
        "num_layers": plan.config.num_hidden_layers,
        "tp": plan.layout.tp,
        "gpu": None if device.gpu is None else device.gpu.slug,
        "cluster": None if device.cluster is None else device.cluster.slug,
        "profile_hashes": {
            "engine": resolved.engine.profile_hash,
            "weights": plan.format.profile_hash,
            "gpu": None if device.gpu is None else device.gpu.profile_hash,
        },
    }


def _assumptions(plan: ServingPlan, device: Device) -> list[str]:
    engine = plan.resolved.engine
    said = [
        f"engine {engine.name}: {engine.verified_against}",
        "all sequences start together and reach the end of their context together",
        *device.assumptions,
    ]
    if engine.name == "transformers":
        said.append("reserved: growth between the first and the last step played as one change")
        said.append(f"launching: {engine.sources['launch_s']}")
    if engine.name == "vllm":
        said.append("CUDA graphs' memory and Python between steps are not estimated")
    return said


def _beyond(plan: ServingPlan, longest: int | None) -> list[str]:
    limit = plan.config.max_position_embeddings
    if longest is None or longest <= limit:
        return []
    return [f"memory has room for {longest} positions; {plan.config.name} was made for {limit}"]


def _advice(
    plan: ServingPlan, need: Need, batches: int | None, longest: int | None
) -> tuple[str, ...]:
    """What would make it fit."""
    if need.fits is not False:
        return ()
    context, batch = plan.resolved.context, plan.resolved.batch
    found = []
    if batches:
        found.append(f"--batch {batches}: the most that fits at context {context}")
    if longest:
        found.append(f"--context {longest}: the longest that fits at batch {batch}")
    if not batches and plan.format.is_dense:
        found.append("--weights nf4 or gptq: fewer bits a weight")
    return tuple(found)
