"""memcalc mfu [MODEL]: how much of a GPU a run uses, by the methods that need no device.

FLOPs ratio from --tflops, throughput ratio from --reference-per-gpu, and with a MODEL every convention's
share at the throughput stated, or at the one the estimate predicts. Exit status 0; 2 for bad input.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from memcalc.cli.deliver import deliver
from memcalc.cli.options import BY_NAME
from memcalc.cli.pace import RATES, Shape, corpus, only_one, positive, priced, tokens_per_s
from memcalc.cli.parse import Arguments, check_positionals
from memcalc.cli.request import request_of, typed
from memcalc.errors import ConfigError
from memcalc.planning import utilisation
from memcalc.planning.train_time import gpus_of, pace_of, tokens_per_step

if TYPE_CHECKING:
    from memcalc.engine.results import Estimate
    from memcalc.inputs.hardware import Gpu
    from memcalc.output.console import Page

#: What means something without a MODEL; every other option describes a setup of one.
_ALONE: Final = {
    "tflops", "peak", "gpu", "precision", "gpus", "seq", "tokens-per-s", "tokens-per-s-per-gpu",
    "samples-per-s", "hours", "tokens", "samples", "epochs", "sample-tokens", "packed",
    "reference-per-gpu", "json", "quiet", "out", "debug",
}  # fmt: skip


def run(arguments: Arguments) -> int:
    """Compute what the options allow, write it; always 0."""
    _merge(arguments)
    check_positionals(arguments)
    found = _by_model(arguments) if arguments.positionals else _alone(arguments)

    def page(sheet: Page) -> None:
        from memcalc.output.mfu_text import mfu_page

        mfu_page(sheet, found)

    line = None
    if arguments.has("quiet") and not arguments.wants_json:
        from memcalc.output.mfu_text import quiet_line

        line = quiet_line(found)
    deliver(arguments, lambda: found, page, line)
    if not arguments.has("quiet") and not arguments.wants_json:
        from memcalc.output.files import put_notes

        put_notes(found["notes"])
    return 0


def _merge(arguments: Arguments) -> None:
    """A run file may name the MODEL, so it is read before it is known whether there is one."""
    if (path := arguments.text("config")) is not None:
        from memcalc.cli.runfile import merge_run_file

        merge_run_file(arguments, path)
        arguments.options.pop("config", None)


def _alone(arguments: Arguments) -> dict[str, Any]:
    """Ratios that need no model."""
    from memcalc.inputs.hardware import load_gpu

    for name in arguments.options:
        if name not in _ALONE:
            raise ConfigError(f"--{name}: got no MODEL; rule: memcalc mfu MODEL --{name}")
    if not {"tflops", "reference-per-gpu"} & set(arguments.options):
        raise ConfigError(
            "mfu: got nothing to compare; rule: --tflops X --gpu NAME, or --samples-per-s X --seq N "
            "--reference-per-gpu X, or a MODEL"
        )
    gpu_name = arguments.text("gpu")
    gpu, notes = (None, []) if gpu_name is None else load_gpu(gpu_name)
    precision = str(typed(BY_NAME["precision"], arguments.text("precision") or "bf16-mixed"))
    dtype = utilisation.dtype_of(precision)
    seq = arguments.text("seq")
    shape = Shape(
        typed(BY_NAME["gpus"], arguments.text("gpus") or "1"),
        None if seq is None else typed(BY_NAME["seq"], seq),
        None,
    )
    rate, basis = _stated(arguments, shape, None)
    return _found(arguments, (gpu, dtype, list(notes)), shape.gpus, rate, basis)


def _by_model(arguments: Arguments) -> dict[str, Any]:
    """All of it for a setup of a model, whose FLOPs a token come from its ledger."""
    from memcalc.cli.deliver import estimate_dict

    request = request_of(arguments)
    device = request.device(arguments)
    result = priced(request, device)
    shape = Shape(gpus_of(result), result.setup["seq_len"], tokens_per_step(result))
    rate, basis = _stated(arguments, shape, result.model.active_parameters)
    if rate is None:
        rate, basis = _predicted(result)
    dtype = utilisation.matmul_dtype(result.setup)
    about = (device.gpu, dtype, list(result.notes))
    found = _found(arguments, about, shape.gpus, rate, basis)
    peak = None if found["peak"] is None else utilisation.Peak(**found["peak"])
    rows = utilisation.shares(result, rate / shape.gpus, peak)
    plain = estimate_dict(request, result)
    named = {row.convention.name: row.share for row in rows}
    found["by_model"] = {
        "model": plain["model"],
        "setup": plain["setup"],
        "mfu": named["full-square"],
        "mfu_causal": named["causal"],
        "hfu": named["executed"],
        "conventions": [
            {**row.convention._asdict(), "flops_per_s": row.flops_per_s, "share": row.share}
            for row in rows
        ],
    }
    largest = max((share for share in named.values() if share is not None), default=0.0)
    if peak is not None and largest > 1:
        found["notes"] += utilisation.doubts(peak, device.gpu, dtype, largest)[-1:]
    if peak is None:
        found["notes"].append("no peak: name a GPU with --gpu, or state --peak TFLOPS")
    return found


def _predicted(result: Estimate) -> tuple[float, str]:
    pace = pace_of(result)
    if pace is None:
        raise ConfigError(
            "mfu: got no throughput; rule: --tokens-per-s, --tokens-per-s-per-gpu, --samples-per-s, "
            "--step-time, or --hours with --tokens; without one the estimate's own, which needs --gpu"
        )
    return pace.tokens_per_s.expected, f"predicted, calibration {result.time.calibration}"


def _stated(arguments: Arguments, shape: Shape, parameters: int | None) -> tuple[float | None, str]:
    """Tokens/s of all GPUs as stated, and by which option; None where none was given."""
    name = only_one(arguments, (*RATES, "hours"))
    work = corpus(arguments, shape.seq_len, parameters)
    if (work is not None) != (name == "hours"):
        given = (
            "hours" if work is None else "tokens" if "tokens" in arguments.options else "samples"
        )
        lacking = "--tokens or --samples" if work is None else "--hours"
        raise ConfigError(f"--{given}: got no {lacking}; rule: both, the run and its duration")
    if name is None:
        return None, ""
    if work is not None:
        hours = positive(arguments, "hours")
        assert hours is not None
        return work.tokens / (hours * 3600), f"{work.tokens:,} tokens in {hours:g} h"
    return tokens_per_s(arguments, name, shape), f"stated by --{name}"


def _found(
    arguments: Arguments,
    about: tuple[Gpu | None, str, list[str]],
    gpus: int,
    rate: float | None,
    basis: str,
) -> dict[str, Any]:
    """The JSON object, without the part by model."""
    from memcalc import __version__

    gpu, dtype, notes = about
    stated, measured = positive(arguments, "peak"), positive(arguments, "tflops")
    known = gpu is not None and dtype in gpu.peak_flops_per_s
    wanted = stated is not None or known or measured is not None
    peak = utilisation.peak_of(gpu, dtype, stated) if wanted else None
    found: dict[str, Any] = {
        "schema": 1, "memcalc": __version__,
        "peak": None if peak is None else peak._asdict(),
        "flops_ratio": None, "throughput": None, "by_model": None,
        "profile_method": utilisation.PROFILE_METHOD, "notes": notes,
    }  # fmt: skip
    largest = 0.0
    if measured is not None:
        if peak is None:
            raise ConfigError("--tflops: got no peak; rule: with --gpu NAME or --peak TFLOPS")
        largest = measured * 1e12 / peak.flops_per_s
        found["flops_ratio"] = {"flops_per_s": measured * 1e12, "ratio": largest}
    if peak is not None:
        notes += utilisation.doubts(peak, gpu, dtype, largest)
    reference = positive(arguments, "reference-per-gpu")
    if rate is None and reference is not None:
        raise ConfigError(
            "--reference-per-gpu: got no throughput; rule: --tokens-per-s, --tokens-per-s-per-gpu or "
            "--samples-per-s with --seq"
        )
    if rate is not None:
        found["throughput"] = {
            "basis": basis, "tokens_per_s": rate, "gpus": gpus, "tokens_per_s_per_gpu": rate / gpus,
            "reference_tokens_per_s_per_gpu": reference,
            "ratio": None if reference is None else rate / gpus / reference,
        }  # fmt: skip
    return found
