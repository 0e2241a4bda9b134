"""What a setup should need, by this project's estimate, and how long measuring it may take. No torch.

The seconds are a rough guess for the deadline alone; they never reach a result.
Checked by: tests/harness/test_gpu_sweep.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.sweep.setups import Spec
from memcalc import estimate
from memcalc.engine.device_side import Device, device_of
from memcalc.errors import ConfigError
from memcalc.harness.local import local_kernels, profile_of

KEPT = (
    "peak_requested_bytes", "peak_allocated_bytes", "peak_reserved_bytes", "device_used_bytes",
    "low_bytes", "high_bytes", "peak_at", "phases", "states", "saved_for_backward_bytes",
    "context_bytes",
)  # fmt: skip
TIMES = (
    "step_s", "low_s", "high_s", "forward_s", "backward_s", "recompute_s", "launch_s", "optimizer_s",
    "calibration",
)  # fmt: skip
#: FLOP/s a step may be expected to reach at the least, by precision, on an H100 or H200.
_RATES = {"fp32": 25e12, "tf32": 100e12, "fp8-mixed": 120e12}
_RATE = 180e12
_BYTES_PER_S = 1.5e12
_STEPS = 6  # first, warm-up, timed, by phases, tracked
_BLOCK_S = 0.012  # an eager block's Python and launches, forward and backward
_COMPILE_S = 25.0
_OVERRUN_S = 20.0  # it ends in the first step


def device_for(facts: Mapping[str, Any]) -> Device:
    """The estimate's device from a worker's facts: the GPU's profile where one fits, its own bytes."""
    if facts["type"] != "cuda":
        return device_of(None)
    total = facts["total_bytes"]
    return device_of(profile_of(facts["name"], total), total)


def predict(spec: Spec, device: Device, kind: str) -> dict[str, Any]:
    """{"memory", "time", "fits", "executed_flops"} of a setup on a device of a kind, or {"error"}."""
    try:
        setup = spec.setup
        kernels = local_kernels(spec.config, setup, spec.kernels, kind)
        found = estimate(spec.config, setup, gpu=device, kernels=kernels)
    except ConfigError as error:
        return {"error": str(error)}
    memory = found.memory.to_dict()
    return {
        "memory": {name: memory[name] for name in KEPT},
        "fits": found.fits,
        "verdict": found.verdict,
        "time": {name: getattr(found.time, name) for name in TIMES},
        "executed_flops": found.time.executed_flops * spec.training["grad_accum_steps"],
        "parameters": found.model.parameters,
        "layers": found.model.num_hidden_layers,
    }


def guess_s(spec: Spec, predicted: Mapping[str, Any], kind: str) -> float:
    """About how many seconds measuring a setup takes; on a CPU a small constant."""
    if "error" in predicted:
        return 1.0
    if spec.expects_oom:
        return _OVERRUN_S
    if kind == "cpu":
        return 1.0 + 3 * predicted["executed_flops"] / 2e9
    flops_s = predicted["executed_flops"] / _RATES.get(spec.training["precision"], _RATE)
    blocks = predicted["layers"] * spec.training["grad_accum_steps"]
    weights_s = 40 * predicted["parameters"] / _BYTES_PER_S
    step_s = flops_s + blocks * _BLOCK_S + weights_s
    return 1.5 + _STEPS * step_s + (_COMPILE_S if spec.compiled else 0.0)
