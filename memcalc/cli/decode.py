"""memcalc measure | verify MODEL --decode N: generate tokens here, alone or beside the estimate.

The decoder is the harness's own. Exit status as of `measure` and `verify`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from memcalc.cli.on_device import (
    EXIT,
    OUTSIDE,
    deliver_record,
    keep,
    measure_options,
    put_trouble,
    records_file,
)
from memcalc.cli.options import BY_NAME
from memcalc.cli.parse import Arguments
from memcalc.cli.request import Request, typed
from memcalc.errors import ConfigError, MemcalcError

if TYPE_CHECKING:
    from memcalc.harness.measure import MeasureOptions

OPTION: Final = "decode"
#: What only --decode has a use for.
_OWN: Final = ("batch", "prompt", "cache")
#: Options of a setup that a generation has too.
_SHARED: Final = ("layers", "precision", "attention", "set", "stack")
_PANELS: Final = ("Measuring", "Output", "Hardware")
_NOT_HERE: Final = ("reference", "profile", "ops", "chart")
#: Positions of a prompt, timed generations and those before them, unless stated.
_PROMPT, _TIMED, _WARMUP = 32, 3, 1


def wanted(arguments: Arguments) -> bool:
    """Whether tokens are to be generated. Raises ConfigError for an option that only then means much."""
    if OPTION in arguments.options:
        return True
    for name in _OWN:
        if name in arguments.options:
            raise ConfigError(f"--{name}: got no --decode; rule: of generations, --decode N")
    return False


def run(arguments: Arguments, request: Request) -> int:
    """Generate, keep the record, write the result; returns the exit status."""
    from memcalc.output.decode_text import measured_page, quiet_line, verified_page

    _check(arguments)
    verifies = arguments.command == "verify"
    record, said = _recorded(arguments, request, verifies)
    if record["status"] == "refused":
        raise MemcalcError(record["error"]["message"])
    page = verified_page if verifies else measured_page
    deliver_record(arguments, request, record, said, page, quiet_line(record))
    put_trouble(record)
    if record["status"] != "ok":
        return EXIT[record["status"]]
    return 0 if not verifies or record["comparison"]["verified"] else OUTSIDE


def _check(arguments: Arguments) -> None:
    for name in arguments.options:
        option = BY_NAME[name]
        known = name in (OPTION, *_OWN, *_SHARED) or option.panel in _PANELS
        if not known or name in _NOT_HERE:
            others = ", ".join(f"--{one}" for one in (*_OWN, *_SHARED))
            raise ConfigError(f"--{name}: got --decode too; rule: of training; valid: {others}")


def _recorded(
    arguments: Arguments, request: Request, verifies: bool
) -> tuple[dict[str, Any], str | None]:
    """The record of generations on this device, and where it was kept."""
    from memcalc.harness.decode_run import measure_decode
    from memcalc.harness.decode_verify import decode_estimate, decode_plan, verify_decode
    from memcalc.harness.device import pick_device
    from memcalc.output.progress import progress

    options = _options(arguments)
    device = pick_device(options.device)
    new, prompt, batch = (_count(arguments, name) for name in (OPTION, "prompt", "batch"))
    setup = replace(
        request.setup, optimizer="none", seq_len=prompt + new, micro_batch_size=batch,
        precision=_precision(arguments, request),
    )  # fmt: skip
    asked = (new, arguments.text("cache") or "grow")
    plan, generation = decode_plan(request.config, setup, request.kernels, device.type, asked)
    path = records_file(arguments)
    with progress(f"{arguments.command} {request.config.name}", arguments.has("quiet")) as tell:
        if verifies:
            calibration = arguments.text("calibration") or "auto"
            told = decode_estimate(generation, device, calibration, options.threads)
            record = verify_decode(plan, generation, told, options, tell)
            record["notes"] += told["notes"]
        else:
            record = measure_decode(plan, generation, options, tell)
    record["setup"]["stated_model"] = request.config.name
    return record, keep(record, path)


def _precision(arguments: Arguments, request: Request) -> str:
    """What was stated; else bf16, for who generates keeps no fp32 weights."""
    stated = "precision" in arguments.options or "training.precision" in request.stated
    return request.setup.precision if stated else "bf16"


def _count(arguments: Arguments, name: str) -> int:
    if name not in arguments.options:
        return _PROMPT if name == "prompt" else 1
    return int(typed(BY_NAME[name], arguments.options[name]))


def _options(arguments: Arguments) -> MeasureOptions:
    stated = measure_options(arguments)
    return replace(
        stated,
        steps=stated.steps or _TIMED,
        warmup=_WARMUP if stated.warmup is None else stated.warmup,
    )
