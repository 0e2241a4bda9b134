"""memcalc train-time MODEL: steps, days, GPU-hours, energy and cost of a whole run.

The pace is the estimate's own step time with its band, or what is stated: a utilisation, tokens/s,
sequences/s or a step time. Exit status 0, also where the setup does not fit: a note says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memcalc.cli.deliver import deliver
from memcalc.cli.options import BY_NAME
from memcalc.cli.pace import RATES, Shape, corpus, only_one, positive, priced, tokens_per_s
from memcalc.cli.parse import Arguments
from memcalc.cli.request import Request, request_of, typed
from memcalc.cli.run_terms import FAILURES, terms
from memcalc.engine.device_side import Device
from memcalc.errors import ConfigError
from memcalc.planning import train_time as planning
from memcalc.planning.utilisation import doubts, matmul_dtype, peak_of, shares, tokens_per_s_at
from memcalc.units import gib

if TYPE_CHECKING:
    from memcalc.engine.results import Estimate
    from memcalc.output.console import Page


def run(arguments: Arguments) -> int:
    """Estimate one step, extend it to the run, write the result; always 0."""
    request = request_of(arguments)
    device = request.device(arguments)
    _check_run(arguments)
    result = priced(request, device)
    found = _found(arguments, request, device, result)

    def page(sheet: Page) -> None:
        from memcalc.output.train_time_text import train_time_page

        train_time_page(sheet, found)

    line = None
    if arguments.has("quiet") and not arguments.wants_json:
        from memcalc.output.train_time_text import quiet_line

        line = quiet_line(found)
    deliver(arguments, lambda: found, page, line)
    if not arguments.has("quiet") and not arguments.wants_json:
        from memcalc.output.files import put_notes

        put_notes(found["notes"])
        put_notes(found["assumptions"], "assumed")
    return 0


def _check_run(arguments: Arguments) -> None:
    """What can be refused before anything is estimated."""
    if only_one(arguments, ("tokens", "samples")) is None:
        raise ConfigError(
            "train-time: got no --tokens; rule: --tokens N (optimal: 20 a parameter), or --samples N "
            "--epochs E"
        )
    only_one(arguments, ("mfu", *RATES))
    only_one(arguments, FAILURES)
    if (kind := arguments.text("mfu-kind")) is not None:
        typed(BY_NAME["mfu-kind"], kind)
        if "mfu" not in arguments.options:
            raise ConfigError("--mfu-kind: got no --mfu; rule: beside --mfu")


def _found(
    arguments: Arguments, request: Request, device: Device, result: Estimate
) -> dict[str, Any]:
    """The JSON object; the page is made from it as well."""
    from memcalc.cli.deliver import estimate_dict

    work = corpus(arguments, result.setup["seq_len"], result.model.active_parameters)
    assert work is not None
    pace = _pace(arguments, device, result)
    agreed = terms(arguments, device, result)
    whole = planning.train_time(result, work, pace, agreed, device.gpu)
    plain, basis = whole.to_dict(), estimate_dict(request, result)
    used, doubted = _used(arguments, device, result, pace)
    modelled = pace.basis == "time model"
    plain["pace"] |= {**used, "calibration": result.time.calibration if modelled else None}
    return {
        **{name: basis[name] for name in ("schema", "memcalc", "model", "setup")},
        **plain,
        "fits": result.fits,
        "verdict": result.verdict,
        "assumptions": _assumptions(result, whole),
        "notes": [*_notes(result, whole), *doubted],
    }


def _pace(arguments: Arguments, device: Device, result: Estimate) -> planning.Pace:
    """The pace stated, else the estimate's. Raises ConfigError where there is neither."""
    name = only_one(arguments, ("mfu", *RATES))
    gpus = planning.gpus_of(result)
    if name == "mfu":
        share = _percent(arguments)
        kind = arguments.text("mfu-kind") or "full-square"
        peak = peak_of(device.gpu, matmul_dtype(result.setup), positive(arguments, "peak"))
        if peak is None:
            raise ConfigError("--mfu: got no peak; rule: with --gpu NAME or --peak TFLOPS")
        rate = gpus * tokens_per_s_at(result, share, kind, peak)
        return planning.stated_pace(f"stated utilisation, {share:.4g} of the peak, {kind}", rate)
    if name is not None:
        shape = Shape(gpus, result.setup["seq_len"], planning.tokens_per_step(result))
        words = {"tokens-per-s": "tokens/s", "tokens-per-s-per-gpu": "tokens/s a GPU",
                 "samples-per-s": "sequences/s", "step-time": "step time"}  # fmt: skip
        return planning.stated_pace(f"stated {words[name]}", tokens_per_s(arguments, name, shape))
    found = planning.pace_of(result)
    if found is None:
        why = "this estimate has no step time; rule: a pace stated"
        if device.gpu is None:
            why = "no GPU is named; rule: --gpu NAME, or a pace stated"
        ways = ", ".join(f"--{way}" for way in ("mfu", *RATES))
        raise ConfigError(f"train-time: {why} by one of {ways}")
    return found


def _percent(arguments: Arguments) -> float:
    """--mfu as a share. A number of 1 and less is taken for a share written as one, and refused."""
    value = positive(arguments, "mfu")
    assert value is not None
    if not 1 < value <= 100:
        near = f"; nearest valid: {value * 100:g}" if value <= 1 else ""
        raise ConfigError(f"--mfu: got {value:g}; rule: per cent, above 1 and at most 100{near}")
    return value / 100


def _used(
    arguments: Arguments, device: Device, result: Estimate, pace: planning.Pace
) -> tuple[dict[str, Any], list[str]]:
    """Utilisation at the pace, by three conventions, and what looks wrong about it."""
    dtype, stated = matmul_dtype(result.setup), positive(arguments, "peak")
    known = device.gpu is not None and dtype in device.gpu.peak_flops_per_s
    peak = peak_of(device.gpu, dtype, stated) if known or stated is not None else None
    each = pace.tokens_per_s.expected / planning.gpus_of(result)
    rows = {row.convention.name: row.share for row in shares(result, each, peak)}
    used: dict[str, Any] = {
        "mfu": rows["full-square"],
        "mfu_causal": rows["causal"],
        "hfu": rows["executed"],
        "peak_flops_per_s": None if peak is None else peak.flops_per_s,
        "peak_source": None if peak is None else peak.source,
    }
    largest = max((share for share in rows.values() if share is not None), default=0.0)
    return used, [] if peak is None else doubts(peak, device.gpu, dtype, largest)


def _notes(result: Estimate, whole: planning.TrainTime) -> list[str]:
    """What the reader should know before believing the figures."""
    said = list(result.notes)
    if result.fits is False:
        used, usable = result.memory.device_used_bytes, result.memory.usable_bytes
        need = "" if used is None or usable is None else f": needs {gib(used)} of {gib(usable)}"
        said.append(f"the setup does not fit{need}; the figures are as if it did")
    if result.model.active_parameters != result.model.parameters:
        said.append("compute-optimal tokens: a rule of dense models, here by the active parameters")
    if whole.padding_share > 0:
        said.append(
            f"{whole.padding_share:.0%} of the computed tokens are padding up to --seq; --packed: none"
        )
    return said


def _assumptions(result: Estimate, whole: planning.TrainTime) -> list[str]:
    """What the figures rest on, beside the estimate's own assumptions."""
    said = ["the run alone: no evaluation, start-up or failed attempts"]
    if whole.energy_kwh is not None:
        said.append(
            f"power: {whole.terms.power_fraction:g} of a TDP of {whole.tdp_w:g} W, times a PUE of "
            f"{whole.terms.pue:g} (as arXiv:2302.13971 counts)"
        )
    price = whole.terms.price
    if price is not None and price.source != "stated":
        said.append(f"price: {price.low:g} to {price.high:g} USD an hour of a GPU, {price.source}")
    if whole.terms.availability.basis == "none":
        said.append("no failures: --availability or --mtbf-hours count them")
    if (units := whole.terms.availability.units) is not None:
        said.append(f"failures: independent, any of {units:,} units (GPUs, or nodes) stops the run")
    if whole.pace.basis == "time model":
        band = f"; band: {result.time.band}" if result.time.band else ""
        said.append(f"step time: calibration {result.time.calibration}{band}")
    return said
