"""The roofline chart's object: every op of the ledger under the roofs of its device.

    intensity = FLOPs / bytes          rate = FLOPs / seconds
    roof      = min(peak of the dtype, intensity x memory bandwidth)       of the datasheet

FLOPs are those the kernels run (of causal attention the half that is not masked), bytes the least that
must be read and written, seconds the estimate's. An op without FLOPs has a rate of bytes only. Seconds of
ops and of what else a step waits for add up to the step; nothing is left out. A rate above its roof is
priced too fast, or is served from a cache: such an op is marked `over`, never moved.
Source: Williams, Waterman and Patterson 2009, Roofline (doi:10.1145/1498765.1498785).
Checked by: unit/test_chart_roofline.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memcalc.engine.make_plan import plan_of
from memcalc.engine.plan import Plan
from memcalc.engine.results import Estimate
from memcalc.engine.timing.attention_time import TF32X3
from memcalc.engine.timing.optimizer_time import Stepped, optimizer_work, stepped_by
from memcalc.engine.timing.step_time import staged
from memcalc.engine.timing.time_estimate import OpTime
from memcalc.errors import ConfigError
from memcalc.inputs.choose_rates import choose_rates
from memcalc.inputs.hardware import Gpu
from memcalc.inputs.rates import PRODUCTS, Rates, sustained
from memcalc.planning.cases import Case, Point
from memcalc.planning.charts.head import head, model_on_gpu, need_one, setup_line

#: What else a step's seconds go to: key of the time estimate -> words.
REST = {
    "exposed_communication_s": "exposed communication",
    "bubble_s": "pipeline bubble",
    "launch_s": "waiting for launches",
    "offload_s": "copies to and from the host",
}
#: A rate this far above its roof is no rounding.
_ROUNDING = 1e-9
Row = dict[str, Any]


def roofline(point: Point) -> dict[str, Any]:
    """The JSON object of a point's roofline; rows are ops, the optimizer last.

    Raises ConfigError for a refused point and one without a GPU.
    """
    (result,) = need_one([point])
    case = point.case
    assert isinstance(case, Case)
    gpu, time = case.device.gpu, result.time
    if gpu is None or time.step_s is None:
        raise ConfigError(
            "chart roofline: got no GPU; rule: a device has the roofs; nearest valid: --gpu h100-80gb"
        )
    rates = sustained(choose_rates(gpu, case.device.calibration)[0])
    batches = int(result.setup["grad_accum_steps"])
    rows = [_row(op, batches, time.step_s, gpu) for op in time.ops]
    stepping = _optimizer(case, result, rates)
    if stepping is not None:
        rows.append(_row(stepping, 1, time.step_s, gpu))
    found = {
        **head(
            "roofline", f"{model_on_gpu([point])}: every operator under the roofs",
            setup_line([point]), [point],
        ),
        "command": case.command,
        "gpu": gpu.slug,
        "micro_batches": batches,
        "step_s": time.step_s,
        "memory": {
            "peak_bytes_per_s": gpu.memory_bandwidth_bytes_per_s,
            "reached_bytes_per_s": _alone(rates, rates.memory.bytes_per_s),
        },
        "roofs": _roofs(rows, gpu, rates),
        "rest": _rest(result),
        "rows": rows,
    }  # fmt: skip
    return {**found, "says": _says(found)}


def _row(op: OpTime, times: int, step_s: float, gpu: Gpu) -> Row:
    """One op; seconds, FLOPs and bytes are of one micro-batch, share is of the step."""
    flops, moved, seconds = float(op.kernel_flops), float(op.bytes), float(op.seconds)
    rate = flops / seconds if seconds else 0.0
    traffic = moved / seconds if seconds else 0.0
    bandwidth = gpu.memory_bandwidth_bytes_per_s
    intensity = flops / moved if moved else None
    roof = None
    if flops:
        peak = peak_of(op.dtype, gpu)[1]
        roof = peak if intensity is None else min(peak, intensity * bandwidth)
    over = traffic > bandwidth * (1 + _ROUNDING) if roof is None else rate > roof * (1 + _ROUNDING)
    return {
        "op": op.op,
        "part": op.part,
        "direction": op.direction,
        "bound": op.bound,
        "dtype": op.dtype or None,
        "kernels": op.kernels,
        "seconds": seconds,
        "share": times * seconds / step_s,
        "flops": flops,
        "bytes": moved,
        "intensity": intensity if flops else None,
        "flops_per_s": rate if flops else None,
        "bytes_per_s": traffic,
        "roof_flops_per_s": roof,
        "over": over,
    }


def peak_of(dtype: str, gpu: Gpu) -> tuple[str, float]:
    """(dtype, FLOPs/s) of the datasheet peak that products of a dtype run under.

    As the time model has it: a dtype without units of its own runs as another.
    """
    if dtype == TF32X3:
        return dtype, gpu.peak_flops_per_s["tf32"] / 3
    candidates = PRODUCTS[dtype][2] if dtype in PRODUCTS else (dtype,)
    for name in candidates:
        if name in gpu.peak_flops_per_s:
            return name, gpu.peak_flops_per_s[name]
    raise ConfigError(f"{gpu.slug}: got no peak of {dtype}; rule: its profile states one")


def _roofs(rows: Sequence[Row], gpu: Gpu, rates: Rates) -> list[dict[str, Any]]:
    """Peaks of the dtypes that products are in, and what the calibration lets a long one alone reach."""
    found = []
    seconds: dict[str, float] = {}
    for row in rows:
        if row["dtype"]:
            seconds[row["dtype"]] = seconds.get(row["dtype"], 0.0) + row["share"]
    for dtype in sorted(seconds, key=lambda name: -seconds[name]):
        rate, (at, peak) = rates.gemm.get(dtype), peak_of(dtype, gpu)
        reached = None
        if rate is not None:
            best = min(1.0, rate.dgrad, rate.wgrad)
            reached = min(_alone(rates, rate.flops_per_s / (1 + rate.droop) / best), peak)
        found.append({"dtype": dtype, "peak_of": at, "peak_flops_per_s": peak,
                      "reached_flops_per_s": reached})  # fmt: skip
    return found


def _alone(rates: Rates, rate: float) -> float:
    """A kernel's rate; in whole blocks they may be slower, and by a measured calibration faster."""
    return rate / min(1.0, rates.sum_residual)


def _optimizer(case: Case, result: Estimate, rates: Rates) -> OpTime | None:
    """The optimizer's step as an op, with the bytes and FLOPs of the rank that steps longest."""
    seconds = result.time.optimizer_s
    if not seconds:
        return None
    plan = plan_of(case.config, case.setup, case.kernels, case.parallel)
    flops, moved = optimizer_work(plan, _stepped(plan, case, rates))
    bound = "compute" if flops and flops / moved > 1 else "bandwidth"
    return OpTime(
        "optimizer", "step", "optimizer", seconds, bound, 0, flops, moved, flops,
        "bf16" if flops else "",
    )  # fmt: skip


def _stepped(plan: Plan, case: Case, rates: Rates) -> Stepped:
    if plan.parallel.pp > 1:
        return staged(plan, case.device, rates).stepping
    return stepped_by([plan])


def _rest(result: Estimate) -> list[dict[str, Any]]:
    """What a step's seconds go to beside ops and optimizer."""
    step = result.time.step_s or 1.0
    found = [(said, float(getattr(result.time, key) or 0.0)) for key, said in REST.items()]
    return [
        {"what": said, "seconds": seconds, "share": seconds / step}
        for said, seconds in found
        if seconds > 0
    ]


def _says(found: Mapping[str, Any]) -> str:
    """Where the step goes, in a line: ops with products, ops without, what is no op."""
    rows = found["rows"]
    products = [row for row in rows if row["flops"]]
    movers = [row for row in rows if not row["flops"]]
    parts = [
        f"{len(products)} ops with matrix products take {_share(products)} of the step",
        f"{len(movers)} that only move bytes {_share(movers)}",
    ]
    parts += [f"{rest['what']} {_percent(rest['share'])}" for rest in found["rest"]]
    over = [f"{row['op']} {row['direction']}" for row in rows if row["over"]]
    said = ", ".join(parts)
    if over:
        said += f"; priced above the roof: {', '.join(over)}"
    return said


def _share(rows: Sequence[Row]) -> str:
    return _percent(sum(row["share"] for row in rows))


def _percent(share: float) -> str:
    """Two digits, and never a share of nothing for something that is there."""
    return f"{100 * share:.1f} %" if share >= 0.0005 else "below 0.05 %"
