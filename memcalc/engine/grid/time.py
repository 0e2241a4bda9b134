"""Time of many sizes of one structure at once: what `time_estimate` says, as arrays.

The formulas are those of `step_time`, which take arrays; what is added here is what one size decides by
comparing numbers: what an op, and the step, is bound by. Equal to the scalar path but for the order of
sums (relative 1e-9). Checked by: property/test_grid.py, unit/test_time_grid.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from memcalc.engine.device_side import Device
from memcalc.engine.flops import step_flops
from memcalc.engine.plan import Plan
from memcalc.engine.timing.answer import filled, peak_flops_per_s, used
from memcalc.engine.timing.bands import band_of
from memcalc.engine.timing.gemm_time import compute_s, memory_s
from memcalc.engine.timing.op_time import priced_for, work_s
from memcalc.engine.timing.step_time import StepTime, step_time
from memcalc.engine.timing.time_estimate import TimeEstimate
from memcalc.engine.works import Work, works_of
from memcalc.inputs.choose_rates import choose_rates
from memcalc.inputs.rates import Rates, sustained

BOUNDS: Final = ("compute", "bandwidth", "latency", "network", "bubble", "host")


class GridTime(NamedTuple):
    """Arrays of shape (lanes,) in the fields of a TimeEstimate; bound: places in BOUNDS."""

    time: TimeEstimate
    bound: Any


def grid_time(plan: Plan, device: Device, lanes: int) -> GridTime:
    """Times of a plan whose sizes are arrays (`grid.together`), on a device that has a GPU."""
    import numpy as np

    assert device.gpu is not None
    rates, _ = choose_rates(device.gpu, device.calibration)
    rates = sustained(rates)
    flops = step_flops(plan.whole)
    empty = TimeEstimate(
        flops.model_per_token, flops.model_causal_per_token, flops.executed_per_token, 0
    )
    parts = step_time(plan, device, rates)
    found = filled(empty, plan, parts, band_of(plan, device.gpu))
    found = used(found, flops, peak_flops_per_s(device.gpu, plan))
    bound = np.broadcast_to(_bound(plan, parts, rates), lanes)
    return GridTime(found._replace(calibration=rates.name), bound)


def _bound(plan: Plan, parts: StepTime, rates: Rates) -> Any:
    """Where most of a step goes, by lane: the place in BOUNDS."""
    import numpy as np

    sums = dict.fromkeys(BOUNDS, np.zeros(1))
    sums["network"], sums["bubble"], sums["host"] = parts.exposed_s, parts.bubble_s, parts.offload_s
    sums["bandwidth"], sums["latency"] = parts.optimizer_s, parts.launch_s
    scale = parts.compute_s / np.maximum(sum(op.seconds for op in parts.ops), 1e-12)
    bounds = _bounds_of_ops(plan, rates)
    for op in parts.ops:
        seconds = op.seconds * scale
        known = bounds.get((op.op, op.part, op.direction))
        for place, name in enumerate(BOUNDS[:3]):
            mine = (op.bound == name) if known is None or op.bound else known == place
            sums[name] = sums[name] + np.where(mine, seconds, 0.0)
    return np.argmax(np.stack(np.broadcast_arrays(*sums.values())), axis=0)


def _bounds_of_ops(plan: Plan, rates: Rates) -> dict[tuple[str, str, str], Any]:
    """What most of each op's seconds go to, by lane: compute, bandwidth, latency by number."""
    import numpy as np

    priced = priced_for(plan, rates)
    found: dict[tuple[str, str, str], list[Any]] = {}
    for work, times in works_of(plan):
        key = (work.op, "once" if work.block < 0 else "block", work.direction)
        sums = found.setdefault(key, [0.0, 0.0, 0.0])
        seconds, _, moved = work_s(work, priced, plan.values)
        kind = _bound_of(work, rates, plan.values, moved)
        for place in range(3):
            sums[place] = sums[place] + np.where(kind == place, times * seconds, 0.0)
    return {
        key: np.argmax(np.stack(np.broadcast_arrays(*sums)), axis=0) for key, sums in found.items()
    }


def _bound_of(work: Work, rates: Rates, dims: Mapping[str, Any], moved: Any) -> Any:
    """What limits a row's kernels, by lane: as `gemm_bound`, and short kernels that move bytes."""
    import numpy as np

    if work.kind == "gemm":
        rate, shape = rates.gemm[work.dtype], [size.value(dims) for size in work.shape]
        compute, memory = compute_s(rate, *shape), memory_s(rate, *shape)
        slow = np.where(np.asarray(compute) >= memory, 0, 1)
        return np.where(np.asarray(compute + memory) < rate.t0_s, 2, slow)
    if work.kind != "moved":
        return np.zeros((), int)
    short = np.asarray(moved / rates.memory.bytes_per_s) < work.launches * rates.memory.t0_s
    return np.where(short, 2, 1)
