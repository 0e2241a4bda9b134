"""The time side of `infer`: rates of each device, and the seconds that follow.

A GPU's rates are those of its calibration; the host's are those of a named calibration of a CPU
(`memcalc calibrate --device cpu`), else the shares of default-cpu of what is stated of the host.
Checked by: unit/test_serving_time.py, unit/test_serving_host.py.
"""

from __future__ import annotations

from typing import NamedTuple

from memcalc.engine.device_side import Device
from memcalc.engine.serving.cache_use import held_cache_bytes
from memcalc.engine.serving.pass_time import pricing
from memcalc.engine.serving.request_time import Clock, RequestTime, request_time
from memcalc.engine.serving.serving_plan import ServingPlan
from memcalc.engine.serving.serving_results import ServingTime
from memcalc.engine.timing.topology import Wires, wires_of
from memcalc.inputs.choose_rates import choose_rates
from memcalc.inputs.hardware import Gpu
from memcalc.inputs.rates import Rates, rates_of

#: Bytes/s between host and GPU where neither says: PCIe 3.0 x16, assumed.
_COPY_BYTES_PER_S = 12.5e9


class Host(NamedTuple):
    """The CPU beside the GPUs, and what was assumed of it."""

    cpu: Gpu
    said: tuple[str, ...] = ()


def serving_time(
    plan: ServingPlan, device: Device, host: Host | None, held: tuple[int, ...]
) -> tuple[ServingTime, list[str]]:
    """Times and rates, and what they rest on. held: bytes of the weights of each place."""
    if device.gpu is None:
        return ServingTime(), []
    rates, note = choose_rates(device.gpu, device.calibration)
    wires = wires_of(device, plan.layout, rates)
    on_host = None if host is None else rates_of(host.cpu)
    clock = _clock(plan, rates, on_host, wires, held)
    found = request_time(clock)
    bandwidth = device.gpu.memory_bandwidth_bytes_per_s
    slow = bandwidth if host is None else host.cpu.memory_bandwidth_bytes_per_s
    said = [f"times: rates {rates.name}: {rates.basis}", *wires.assumptions]
    if on_host is not None and plan.host_places:
        said.append(f"times of the host: rates {on_host.name}: {on_host.basis}")
    bound = _lower_bound_s(plan, held, bandwidth, slow)
    return _filled(plan, found, bound, rates), [*said, *([note] if note else [])]


def _clock(
    plan: ServingPlan, rates: Rates, on_host: Rates | None, wires: Wires, held: tuple[int, ...]
) -> Clock:
    """What each device's passes are priced with."""
    own = [
        pricing(plan.on(place), on_host if place.host and on_host else rates, wires)
        for place in plan.places
    ]
    link = rates.links.host or rates.links.pcie
    copies = link.bus_bytes_per_s if link else _COPY_BYTES_PER_S
    offloads = pricing(plan, rates, wires) if plan.host_places and on_host else None
    draft = None
    if plan.draft is not None:
        weights = tuple(0 for _ in plan.draft.places)
        draft = _clock(plan.draft, rates, on_host, wires, weights)
    return Clock(plan, tuple(own), copies, held, draft, offloads)


def _filled(plan: ServingPlan, found: RequestTime, bound: float, rates: Rates) -> ServingTime:
    engine, step = plan.resolved.engine, found.step
    low, high = (float(engine.values[name]) for name in ("band_low", "band_high"))
    token = found.time_per_output_token_s
    return ServingTime(
        prefill_s=found.prefill_s,
        time_per_output_token_s=token,
        request_s=found.request_s,
        tokens_per_s=found.tokens_per_s,
        decode_tokens_per_s=found.decode_tokens_per_s,
        step_kernels_s=step.kernels_s,
        step_launch_s=step.launch_s,
        step_exchanges_s=step.exchanges_s,
        step_kernels=step.kernels,
        bound=step.bound,
        lower_bound_s=bound,
        low_s=token * low,
        high_s=token * high,
        band=engine.sources["band_low"],
        calibration=rates.name,
        step_s=step.seconds + found.draft_s,
        draft_s=found.draft_s if plan.draft else None,
        tokens_per_step=plan.resolved.tokens_a_step,
    )


def _lower_bound_s(
    plan: ServingPlan, held: tuple[int, ...], bandwidth: float, host_bytes_per_s: float
) -> float:
    """Weights that a token needs, and the cache in the middle of the generation, read once.

    Of pipeline stages all are read in turn; of experts those that a single sequence's tokens choose.
    With a draft a step's bytes are shared by its tokens.
    """
    resolved = plan.resolved
    middle = resolved.prompt + resolved.generated // 2
    sized = plan.sized(resolved.batch, middle) if middle > 1 else plan
    total = 0.0
    for place, weights in zip(plan.places, held, strict=True):
        read = weights - _unread_bytes(plan.on(place))
        read += held_cache_bytes(sized.on(place)) if middle > 1 else 0
        total += read / (host_bytes_per_s if place.host else bandwidth)
    return total / resolved.tokens_a_step


def _unread_bytes(plan: ServingPlan) -> int:
    """Of the embedding only a row a token is read, unless the head reads all of it; and of experts at
    least those that one token chooses."""
    config, found = plan.config, 0
    for one in plan.weights().leaves:
        if one.role == "embedding" and (not config.tie_word_embeddings or not plan.part.ends[1]):
            found += one.resident_bytes
        elif one.role == "experts" and config.moe is not None:
            share = config.moe.num_experts_per_tok / config.moe.num_experts
            found += int(one.resident_bytes * (1 - share))
    return found
