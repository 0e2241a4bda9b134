"""From parsed arguments to what the library takes: model, training setup, kernels, device."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from memcalc.cli.options import BY_NAME, MEASURE, OPTIONS, Option
from memcalc.cli.overrides import number, parse_overrides, plain
from memcalc.cli.parse import Arguments, check_positionals
from memcalc.cli.peft_options import method_of, setup_of
from memcalc.errors import ConfigError, unknown
from memcalc.inputs.model import MAX_LAYERS, ModelConfig
from memcalc.inputs.models import load_model
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.training import TrainingSetup
from memcalc.inputs.training_names import RECOMPUTE
from memcalc.units import parse_count, parse_decimal_count, parse_memory

if TYPE_CHECKING:
    from memcalc.engine.device_side import Device
    from memcalc.inputs.hardware import Gpu


@dataclass(frozen=True, slots=True)
class Request:
    """One run as stated: everything `memcalc.estimate` and `memcalc.explain` take."""

    model_name: str
    config: ModelConfig
    setup: TrainingSetup
    kernels: Mapping[str, Any]
    stated: Mapping[str, Any]  # what --set changed
    parallel: ParallelPlan = ParallelPlan()  # noqa: RUF009  # immutable

    def device(self, arguments: Arguments) -> Device:
        """The GPU side, from --gpu, --gpu-memory, --reserve and --cluster."""
        return device_stated(arguments)


def device_stated(arguments: Arguments) -> Device:
    """The GPU side, from --gpu, --gpu-memory, --reserve, --cluster and --calibration."""
    from memcalc.engine.device_side import device_of

    memory, reserve = arguments.text("gpu-memory"), arguments.text("reserve")
    name = arguments.text("gpu")
    stated = None if memory is None else parse_memory(memory, "--gpu-memory")
    kept = 0 if reserve is None else parse_memory(reserve, "--reserve")
    if stated == 0:
        raise ConfigError(f"--gpu-memory: got {memory!r}; rule: above 0")
    gpu: Gpu | str | None = name
    if name == "local":
        gpu, total = _local_gpu()
        stated = total if stated is None else stated
    cluster = arguments.text("cluster")
    device = device_of(gpu, stated, kept, cluster, calibration_of(arguments))
    if device.usable_bytes is not None and device.usable_bytes <= 0:
        whole = device.usable_bytes + kept
        raise ConfigError(f"--reserve: got {reserve}; rule: below the GPU's {whole} bytes")
    return device


def calibration_of(arguments: Arguments) -> str:
    """The rates asked for; unless stated the measured ones of --gpu local, else the default."""
    stated = arguments.text("calibration")
    if stated is not None:
        return stated
    return "auto" if arguments.text("gpu") == "local" else "default"


def _local_gpu() -> tuple[Gpu | None, int]:
    """The profile of this machine's GPU, where one fits, and the bytes torch sees of it."""
    need_torch()
    from memcalc.harness.device import pick_device
    from memcalc.harness.local import local_gpu

    try:
        return local_gpu(pick_device("cuda"))
    except ConfigError as error:
        why = str(error).split("; ")[1:2] or ["no CUDA device"]
        raise ConfigError(
            f"--gpu: got local, but {why[0]}; valid: a name of `memcalc list gpus`"
        ) from None


def need_torch() -> None:
    """Raise ConfigError unless torch can be imported; quiet its profiler's own messages."""
    if importlib.util.find_spec("torch") is None:
        raise ConfigError("torch is not installed; rule: pip install torch")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")


def request_of(arguments: Arguments) -> Request:
    """Resolve a command's arguments, run file included. Raises ConfigError."""
    if (path := arguments.text("config")) is not None:
        from memcalc.cli.runfile import merge_run_file

        merge_run_file(arguments, path)
    check_positionals(arguments)
    stated = arguments.options.get("set")
    overrides = parse_overrides(stated if isinstance(stated, list) else [])
    setup = TrainingSetup(**{**setup_fields(arguments), **overrides.training})
    name = arguments.positionals[0]
    config = overrides.apply_to_model(load_model(name))
    if (path := arguments.text("save")) is not None:
        from memcalc.cli.runfile import save_run_file

        save_run_file(arguments, path)
    return Request(
        name, config, setup, overrides.kernels, plain(overrides), layout_stated(arguments)
    )


def setup_fields(arguments: Arguments) -> dict[str, Any]:
    """Fields of TrainingSetup that options state."""
    found: dict[str, Any] = {}
    for option in OPTIONS:
        if option.field and option.name in arguments.options:
            value = typed(option, arguments.options[option.name])
            if option.kind == "recompute":
                found["recompute"], found["recompute_layers"] = value
            elif option.kind == "peft":
                found["peft.method"], found["peft.layers"] = value
            else:
                found[option.field] = value
    return setup_of(found)


def layout_stated(arguments: Arguments) -> ParallelPlan:
    """The layout stated; `measure` and `verify` take theirs from torchrun."""
    found: dict[str, Any] = {}
    for option in OPTIONS:
        if (
            option.parallel
            and option.name in arguments.options
            and arguments.command not in MEASURE
        ):
            value = typed(option, arguments.options[option.name])
            found[option.parallel] = value
    return ParallelPlan(**found)


def typed(option: Option, value: object) -> Any:
    """The value of an option from its text. Raises ConfigError naming the option."""
    if option.name in ("no-set-to-none", "no-sp", "no-pin-memory"):
        return False
    if option.kind == "flag":
        return True
    text = str(value).strip()
    if option.choices and text not in option.choices:
        raise unknown(option.flag, text, option.choices)
    if option.kind in ("count", "decimal"):
        return _at_least_one(text, option.flag, option.kind == "decimal")
    if option.kind == "number":
        return number(text, option.flag)
    if option.kind == "stage":
        return int(text)
    if option.kind == "counts" and text.count(",") >= MAX_LAYERS:
        listed = text.count(",") + 1
        raise ConfigError(f"{option.flag}: got {listed} values; rule: at most {MAX_LAYERS}")
    if option.kind == "counts":
        return tuple(parse_count(part, option.flag) for part in text.split(","))
    if option.kind == "names":
        return tuple(part.strip() for part in text.split(","))
    if option.kind == "reshard":
        words = {"true": True, "false": False}
        if text.lower() in words:
            return words[text.lower()]
        if not text.isdecimal():
            raise ConfigError(
                f"{option.flag}: got {text!r}; valid: true, false or a number of ranks"
            )
        return _at_least_one(text, option.flag)
    if option.kind == "recompute":
        return _recompute(text)
    if option.kind == "peft":
        return method_of(text)
    return text


def _at_least_one(text: str, flag: str, decimal: bool = False) -> int:
    count = parse_decimal_count(text, flag) if decimal else parse_count(text, flag)
    if count < 1:
        raise ConfigError(f"{flag}: got {text}; rule: at least 1")
    return count


def _recompute(text: str) -> tuple[str, int | None]:
    """`full:4` as ("full", 4)."""
    word, colon, blocks = text.partition(":")
    if word not in RECOMPUTE:
        raise unknown(BY_NAME["recompute"].flag, word, [*RECOMPUTE, "full:N"])
    if not colon:
        return word, None
    if word != "full":
        raise ConfigError(f"--recompute: got {text!r}; rule: only full:N takes a number of blocks")
    return word, parse_count(blocks, "--recompute full:N")
