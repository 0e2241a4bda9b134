"""How much of a device a run used, by three methods that are never mixed up.

(a) FLOPs ratio: the model's FLOPs a token times tokens/s, over a peak. The FLOPs are counted with
    attention over the full square ("mfu") and half of it ("mfu_causal"), or as executed, with
    recomputation ("hfu"); the peak is the datasheet's dense figure or a matmul measured here.
(b) Throughput: tokens/s over those of a run named as reference.
(c) Profile: shares of the step's time in kernels (memcalc/harness/watch/profiling.py).
Sources: Chowdhery et al. 2022 (arXiv:2204.02311, appendix B) for (a).
Checked by: harness/test_utilisation.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from memcalc.engine.flops import StepFlops, step_flops
from memcalc.engine.plan import Plan
from memcalc.harness.calibration.timing import CPU, CUDA, Bench, Protocol
from memcalc.harness.local import profile_of

_DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "fp8": torch.bfloat16,
           "bf16": torch.bfloat16}  # fmt: skip
_CUDA_SIZE, _CPU_SIZES = 8192, (2048, 1024, 512)
#: A CPU's product may take this long; where 2048 takes longer a smaller one is timed, and said.
_CPU_CALL_S = 0.5
_ceilings: dict[tuple[str, str, int], dict[str, Any]] = {}


class Peak(NamedTuple):
    """A rate to divide by: FLOP/s, its dtype, and where it is from."""

    flops_per_s: float
    dtype: str
    source: str


def matmul_dtype(plan: Plan) -> str:
    """What the run's matmuls multiply: fp32, tf32, fp16, bf16 or fp8."""
    if plan.kernels.fp8_linear:
        return "fp8"
    if plan.resolved.setup.precision == "tf32":
        return "tf32"
    return plan.kernels.compute_dtype


def datasheet_peak(name: str, total_bytes: int | None, dtype: str) -> Peak | None:
    """The dense datasheet rate of a GPU by the driver's name for it; None where no profile fits."""
    gpu = profile_of(name, total_bytes)
    rate = None if gpu is None else gpu.peak_flops_per_s.get(dtype)
    return None if gpu is None or rate is None else Peak(float(rate), dtype, gpu.slug)


def measured_ceiling(
    device: torch.device, dtype: str, protocol: Protocol | None = None
) -> dict[str, Any]:
    """FLOP/s of one large square matmul of random numbers on this device, once a process.

    n = 8192 on CUDA, timed for 300 ms; 2048 on a CPU, or less where that takes over half a second.
    fp8 runs are held against a bf16 product. {"n", "dtype", "flops_per_s", "p10", "p90", "calls"}.
    """
    key = (str(device), dtype, torch.get_num_threads())
    if protocol is not None or key not in _ceilings:
        bench = Bench(device, protocol or (CUDA if device.type == "cuda" else CPU))
        found = _timed_matmul(bench, dtype, _size(bench, dtype))
        if protocol is not None:
            return found
        _ceilings[key] = found
    return _ceilings[key]


def _size(bench: Bench, dtype: str) -> int:
    if bench.device.type == "cuda":
        return _CUDA_SIZE
    small = Bench(bench.device, Protocol(0.0, 0.001, 0.0))
    n = 256
    one = 2 * n**3 / _timed_matmul(small, dtype, n)["flops_per_s"]
    fitting = [size for size in _CPU_SIZES if one * (size / n) ** 3 <= _CPU_CALL_S]
    return fitting[0] if fitting else _CPU_SIZES[-1]


def _timed_matmul(bench: Bench, dtype: str, n: int) -> dict[str, Any]:
    kind = _DTYPES[dtype]
    left, right = bench.randn(n, n, dtype=kind), bench.randn(n, n, dtype=kind)
    out = torch.empty(n, n, dtype=kind, device=bench.device)
    timed = bench.time(lambda _: torch.mm(left, right, out=out))
    flops = 2 * n**3
    return {
        "n": n,
        "dtype": "bf16" if dtype == "fp8" else dtype,
        "flops_per_s": flops / timed.median_s,
        "p10_flops_per_s": flops / timed.p90_s,
        "p90_flops_per_s": flops / timed.p10_s,
        "calls": timed.calls,
    }


def utilisation(
    plan: Plan,
    tokens_per_s: float,
    datasheet: Peak | None,
    ceiling: dict[str, Any] | None,
    reference_tokens_per_s: float | None,
    devices: int = 1,
) -> dict[str, Any]:
    """Methods (a) and (b) of a run; entries are None where their peak is unknown.

    tokens_per_s: of all devices together; the peaks are one device's, so the ratios are a mean.
    """
    flops, each = step_flops(plan), tokens_per_s / devices
    found: dict[str, Any] = {
        "model_flops_per_token": flops.model_per_token,
        "model_flops_causal_per_token": flops.model_causal_per_token,
        "executed_flops_per_token": flops.executed_per_token,
        "datasheet": None,
        "measured_matmul": None,
        "throughput": None,
    }
    if datasheet is not None:
        found["datasheet"] = {**datasheet._asdict(), **_ratios(flops, each, datasheet[0])}
    if ceiling is not None:
        rate = float(ceiling["flops_per_s"])
        found["measured_matmul"] = {**ceiling, **_ratios(flops, each, rate)}
    if reference_tokens_per_s is not None:
        found["throughput"] = {
            "reference_tokens_per_s": reference_tokens_per_s,
            "ratio": tokens_per_s / reference_tokens_per_s,
        }
    return found


def _ratios(flops: StepFlops, tokens_per_s: float, peak_flops_per_s: float) -> dict[str, float]:
    """mfu (full square), mfu_causal and hfu (executed) against one peak."""
    rate = tokens_per_s / peak_flops_per_s
    return {
        "mfu": flops.model_per_token * rate,
        "mfu_causal": flops.model_causal_per_token * rate,
        "hfu": flops.executed_per_token * rate,
    }
