"""The two-depth residual: measured steps over what the time model makes of the single operations.

The model prices the same decoder at both depths with the calibration's own rates. Measured over predicted
is what kernels timed one by one leave out: gaps between them, a warmer chip, caches another kernel has
used. `block` compares the two blocks that are the difference, `rest` all that is no block, `step` both
whole steps (their mean ratio); `step` is what the rates take, for a difference of two steps is noisy.
Checked by: harness/test_calibrate.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from memcalc.engine.serving.generation import generation_time
from memcalc.engine.timing.step_time import step_time
from memcalc.engine.timing.topology import wires_of
from memcalc.harness.calibration.microbench import Step
from memcalc.harness.calibration.microbench_decode import generation_of
from memcalc.harness.calibration.microbench_step import plan_for
from memcalc.harness.calibration.summary_rows import Row
from memcalc.harness.local import local_device
from memcalc.inputs.choose_rates import as_device
from memcalc.inputs.measured_rates import measured_rates
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.rates import Rates, sustained


def residuals(profile: Mapping[str, Any], device: torch.device) -> list[Row]:
    """A row for each setup measured at two depths; none where the GPU has no profile."""
    rows = profile["summary"].get("two_depth", ())
    rates = rates_here(profile, device) if rows else None
    if rates is None:
        return []
    return [_residual(row, rates, device) for row in rows]


def generation_residuals(profile: Mapping[str, Any], device: torch.device) -> list[Row]:
    """Measured over predicted of whole generations, prompts and steps; none where the GPU has no profile."""
    rows = profile["summary"].get("generation", ())
    rates = rates_here(profile, device) if rows else None
    if rates is None:
        return []
    wires = wires_of(local_device(device), ParallelPlan(), rates)
    found = []
    for row in rows:
        names = {name: row[name] for name in ("model", "precision", "attention")}
        told = generation_time(generation_of(**names, device=device), rates, wires)
        found.append(
            {**names, "prompt": row["prompt_s"] / told.prefill.seconds,
             "step": row["step_s"] / told.step.seconds, "n": 1,
             "relative_spread": row["relative_spread"]}
        )  # fmt: skip
    return found


def rates_here(profile: Mapping[str, Any], device: torch.device) -> Rates | None:
    """The calibration's rates for the device it was measured on, as estimates take them; None for a
    GPU without a profile."""
    gpu = as_device(profile) if device.type == "cpu" else local_device(device).gpu
    return None if gpu is None else without_residual(measured_rates(profile, gpu).rates)


def without_residual(rates: Rates) -> Rates:
    """The rates as estimates take them, but for the residual that is looked for."""
    return replace(sustained(rates), sum_residual=1.0)


def _residual(row: Row, rates: Rates, device: torch.device) -> Row:
    named = {name: row[name] for name in Step._fields if name in row}
    setup = Step(**{"optimizer_impl": None, **named})
    predicted = predicted_s(setup, row["layers"], rates, device)
    (shallow, deep), (told, told_deep) = row["step_s"], predicted
    layers = row["layers"][1] - row["layers"][0]
    block_s = (told_deep - told) / layers
    rest_s = told - row["layers"][0] * block_s
    return {
        **named,
        "layers": row["layers"],
        "predicted_s": predicted,
        "step": (shallow / told + deep / told_deep) / 2,
        "block": row["block_s"] / block_s,
        "rest": row["rest_s"] / rest_s,
        "n": 2,
        "relative_spread": row["relative_spread"],
    }


def predicted_s(
    setup: Step, depths: Sequence[int], rates: Rates, device: torch.device
) -> list[float]:
    """Seconds of a step of a setup at each depth, by these rates."""
    here = local_device(device)
    return [float(step_time(plan_for(setup, n, device), here, rates).step_s) for n in depths]
