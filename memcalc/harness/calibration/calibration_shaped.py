"""Products again, by the default's formula: its tiles and waves kept, its ceiling fitted to the device.

A plain t0, P, W is as good as the shapes it was fitted on. The default of an architecture knows from
thousands of shapes what tiles that do not fit cost (engine/timing/gemm_time.py); what it does not know is how
fast this device, with this release and power limit, is. So its ceiling is scaled until the median product
takes as long as measured, for each part. `measured_rates` takes whichever has the smaller mean error.
Points run back to back for 300 ms and more, so the formula's droop of long runs is in force.
Checked by: harness/test_measured_consistency.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

from memcalc.engine.timing.gemm_time import product_s
from memcalc.harness.calibration.summary_gemm import PARTS
from memcalc.harness.calibration.summary_rows import Row, of_kind
from memcalc.inputs.hardware import Gpu
from memcalc.inputs.rates import GemmRate, rates_of, sustained

_ROUNDS = 20
#: Products of one dtype and part that are enough to say where its ceiling lies.
_ENOUGH = 3


def add_shaped(profile: Mapping[str, Any], gpu: Gpu) -> None:
    """Put `shaped` into the summary's row of each dtype with enough products."""
    base = sustained(rates_of(gpu))
    for row in profile["summary"].get("gemm", ()):
        rate = base.gemm.get(row["dtype"])
        points = of_kind(profile["points"], "gemm", dtype=row["dtype"])
        if row["part"] == "all" and rate is not None:
            found = shaped(points, rate)
            if found is not None:
                row["shaped"] = {"by": base.name, **found}


def shaped(points: Sequence[Row], rate: GemmRate) -> Row | None:
    """{"flops_per_s", "dgrad", "wgrad", "mean_relative_error"} of a rate fitted to points; None for too
    few of them."""
    by_part = {part: [p for p in points if p["part"] == part] for part in PARTS}
    if len(by_part["forward"]) < _ENOUGH:
        return None
    forward = rate
    for _ in range(_ROUNDS):
        slower = median(_ratios(by_part["forward"], forward))
        forward = forward._replace(flops_per_s=forward.flops_per_s / slower)
    factors = {
        part: median(_ratios(by_part[part], forward)) if len(by_part[part]) >= _ENOUGH else 1.0
        for part in ("dgrad", "wgrad")
    }
    errors = [
        abs(factors.get(part, 1.0) / ratio - 1)
        for part, mine in by_part.items()
        for ratio in _ratios(mine, forward)
    ]
    return {
        "flops_per_s": forward.flops_per_s,
        **factors,
        "n": len(errors),
        "mean_relative_error": fmean(errors),
    }


def _ratios(points: Sequence[Row], rate: GemmRate) -> list[float]:
    """Measured over predicted seconds, each as a forward product."""
    return [p["median_s"] / product_s(rate, 1, p["m"], p["n"], p["k"]) for p in points]
