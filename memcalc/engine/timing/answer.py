"""From the parts of a step's time to what an estimate says: rates, utilisation, bounds, band.

Utilisations count the model's FLOPs, never what the estimate's own kernels execute, against the dense
datasheet peak of the dtype of the products. The lower bound is what the FLOPs a causal model needs take
at that peak, or the bytes on the busiest link at its datasheet rate; the upper one overlaps nothing.
Checked by: unit/test_time_answer.py, property/test_step_time.py.
"""

from __future__ import annotations

from memcalc.engine.device_side import Device
from memcalc.engine.flops import StepFlops, step_flops
from memcalc.engine.plan import Plan
from memcalc.engine.timing.attention_time import is_of
from memcalc.engine.timing.bands import Band, band_of
from memcalc.engine.timing.step_time import StepTime, step_time
from memcalc.engine.timing.time_estimate import TimeEstimate
from memcalc.inputs.choose_rates import choose_rates
from memcalc.inputs.hardware import Gpu
from memcalc.inputs.rates import sustained

#: What a step that waits for each of these is bound by.
_NETWORK = "network"
_WIDE = "fused attention in fp32: the 16-bit rate, slower as fp32 products are; not measured"


def time_estimate(plan: Plan, device: Device) -> tuple[TimeEstimate, list[str]]:
    """Time of a step of a plan, and notes on what it rests on; times are None without a GPU."""
    flops = step_flops(plan.whole)
    empty = TimeEstimate(
        model_flops_per_token=flops.model_per_token,
        model_flops_causal_per_token=flops.model_causal_per_token,
        executed_flops_per_token=flops.executed_per_token,
        executed_flops=flops.executed,
    )
    if device.gpu is None:
        return empty, []
    rates, note = choose_rates(device.gpu, device.calibration)
    rates = sustained(rates)
    parts = step_time(plan, device, rates)
    peak = peak_flops_per_s(device.gpu, plan)
    found = filled(empty, plan, parts, band_of(plan, device.gpu))._replace(bound=_bound(parts))
    found = used(found, flops, peak)
    said = [f"times: rates {rates.name}: {rates.basis}", *parts.said, *([note] if note else [])]
    wide = plan.kernels.attention != "eager" and plan.kernels.compute_dtype == "fp32"
    if wide and not any(is_of(kernel, "fp32") for kernel in rates.attention):
        said.append(_WIDE)
    return _bounded(found, parts)._replace(calibration=rates.name), said


def peak_flops_per_s(gpu: Gpu, plan: Plan) -> float | None:
    """Dense datasheet rate of the products' dtype; fp8 where blocks' products are in fp8."""
    kernels = plan.kernels
    tf32 = plan.resolved.setup.precision == "tf32"
    dtype = "fp8" if kernels.fp8_linear else "tf32" if tf32 else kernels.compute_dtype
    return gpu.peak_flops_per_s.get(dtype)


def filled(empty: TimeEstimate, plan: Plan, parts: StepTime, band: Band) -> TimeEstimate:
    """Seconds of the step and its parts, and rates; sizes may be arrays."""
    resolved, layout = plan.resolved, plan.parallel
    samples = resolved.micro_batch_size * resolved.grad_accum_steps * layout.copies
    rate = samples * resolved.seq_len / parts.step_s
    return empty._replace(
        step_s=parts.step_s,
        low_s=parts.step_s * band.low,
        high_s=parts.step_s * band.high,
        band=band.reason,
        tokens_per_s=rate,
        tokens_per_s_per_gpu=rate / layout.size,
        samples_per_s=samples / parts.step_s,
        compute_s=parts.compute_s,
        forward_s=parts.forward_s,
        backward_s=parts.backward_s,
        recompute_s=parts.recompute_s,
        launch_s=parts.launch_s,
        exposed_communication_s=parts.exposed_s,
        hidden_communication_s=parts.hidden_s,
        bubble_s=parts.bubble_s,
        optimizer_s=parts.optimizer_s,
        offload_s=parts.offload_s,
        ops=parts.ops,
        exchanges=parts.exchanges,
    )


def used(time: TimeEstimate, flops: StepFlops, peak: float | None) -> TimeEstimate:
    """Utilisations of the peak; sizes may be arrays."""
    rate = time.tokens_per_s_per_gpu
    if peak is None or rate is None:
        return time
    return time._replace(
        mfu=flops.model_per_token * rate / peak,
        mfu_causal=flops.model_causal_per_token * rate / peak,
        hfu=flops.executed_per_token * rate / peak,
        peak_flops_per_s=peak,
    )


def _bounded(time: TimeEstimate, parts: StepTime) -> TimeEstimate:
    """Seconds no step can beat, and those of a step that overlaps nothing."""
    least = parts.link_s
    if time.mfu_causal is not None and time.step_s is not None:
        least = max(least, time.mfu_causal * time.step_s)
    return time._replace(lower_bound_s=least, upper_bound_s=parts.step_s + parts.hidden_s)


def _bound(parts: StepTime) -> str:
    """Where most of a step goes: an op's bound, launching, the network, or waiting for stages."""
    seconds = {_NETWORK: parts.exposed_s, "bubble": parts.bubble_s, "host": parts.offload_s}
    seconds |= {"bandwidth": parts.optimizer_s, "latency": parts.launch_s}
    scale = parts.compute_s / max(sum(op.seconds for op in parts.ops), 1e-12)
    for op in parts.ops:
        seconds[op.bound] = seconds.get(op.bound, 0.0) + op.seconds * scale
    return max(seconds, key=lambda name: seconds[name])
