"""memcalc infer MODEL: memory and time of serving a model, the batch and the context that fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from memcalc.cli.option import Option
from memcalc.cli.options import BY_NAME
from memcalc.cli.parse import Arguments, check_positionals
from memcalc.cli.request import device_stated, layout_stated, typed
from memcalc.cli.serving_options import SERVING_OPTIONS
from memcalc.errors import ConfigError, unknown
from memcalc.inputs.models import load_model
from memcalc.inputs.serving import DEVICES, ServingSetup
from memcalc.units import parse_memory

if TYPE_CHECKING:
    from memcalc.engine.serving.serving_results import ServingEstimate
    from memcalc.output.console import Page

DOES_NOT_FIT: Final = 3
#: Options of other tables that are fields of ServingSetup too.
_SHARED: Final = {
    "weights": "weights", "attention": "attention", "layers": "num_layers", "imbalance": "imbalance",
}  # fmt: skip


def run(arguments: Arguments) -> int:
    """Estimate, write the result, and return 0 when it fits or no GPU was named, else 3."""
    if arguments.has("json") and arguments.has("quiet"):
        raise ConfigError("--quiet: got --json too; rule: one form of output")
    if (path := arguments.text("config")) is not None:
        from memcalc.cli.runfile import merge_run_file

        merge_run_file(arguments, path)
    check_positionals(arguments)
    setup = serving_stated(arguments)
    name = arguments.positionals[0]
    config = load_model(name)
    device = device_stated(arguments)
    if (path := arguments.text("save")) is not None:
        from memcalc.cli.runfile import save_run_file

        save_run_file(arguments, path)
    from memcalc.engine.serving.infer import infer

    result = infer(config, setup, parallel=layout_stated(arguments), gpu=device)
    _deliver(arguments, name, result)
    return DOES_NOT_FIT if result.fits is False else 0


def serving_stated(arguments: Arguments) -> ServingSetup:
    """The serving setup that options state. Raises ConfigError."""
    found: dict[str, Any] = {}
    for option in SERVING_OPTIONS:
        if option.serving and option.name in arguments.options:
            found[option.serving] = _value(option, arguments.options[option.name])
    for name, field in _SHARED.items():
        if name in arguments.options:
            found[field] = typed(BY_NAME[name], arguments.options[name])
    if (device := arguments.text("device")) is not None:
        if device not in DEVICES:
            raise unknown("--device", device, DEVICES)
        found["device"] = device
    return ServingSetup(**found)


def _value(option: Option, stated: Any) -> Any:
    """The value of an option of serving, in base units. Raises ConfigError."""
    if option.name == "no-cuda-graphs":
        return False
    if option.kind == "memory":
        return parse_memory(str(stated), option.flag)
    if option.kind == "gpu-layers":
        word = str(stated).strip().lower()
        if word != "auto" and not word.isdecimal():
            raise ConfigError(f"{option.flag}: got {stated!r}; rule: a number of layers, or auto")
        return word if word == "auto" else int(word)
    value = typed(option, stated)
    return value * 1e9 if option.name == "host-bandwidth" else value


def _deliver(arguments: Arguments, name: str, result: ServingEstimate) -> None:
    from memcalc.cli.deliver import deliver
    from memcalc.output.infer_text import infer_page, quiet_line

    def plain() -> dict[str, Any]:
        from memcalc.inputs.models import model_hash

        found = result.to_dict()
        hashes = {"model": model_hash(name), **found["setup"]["profile_hashes"]}
        found["setup"] = {"model": name, **found["setup"], "profile_hashes": hashes}
        return found

    def page(sheet: Page) -> None:
        infer_page(sheet, result)

    quiet = arguments.has("quiet")
    deliver(arguments, plain, page, quiet_line(result) if quiet else None)
    out = arguments.text("out") or ""
    if not quiet and not arguments.wants_json and not out.lower().endswith(".json"):
        from memcalc.output.files import put_notes

        put_notes(result.notes)
        put_notes(result.assumptions, "assumed")
