"""Fields of a setup as options of `memcalc estimate`: what an import found, what an export lacks.

Checked by: cli/test_import.py, property/test_interop.py.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, Final

from memcalc.cli.options import OPTIONS
from memcalc.cli.parse import Value
from memcalc.cli.peft_options import PEFT_OPTIONS
from memcalc.cli.variant_cases import words_of
from memcalc.inputs.peft import PeftSetup
from memcalc.inputs.stacks import load_stack
from memcalc.inputs.training import TrainingSetup
from memcalc.planning.interop.differences import REPLACES
from memcalc.planning.interop.facts import default_of

#: Options that state a field's other value.
_NEGATED: Final = {
    "set_to_none": "no-set-to-none", "sp": "no-sp", "pin_memory": "no-pin-memory",
}  # fmt: skip
_BY_FIELD: Final = {
    option.field or option.parallel: option
    for option in reversed(OPTIONS)
    if (option.field or option.parallel) and not option.name.startswith("no-")
}
_TRAINING: Final = frozenset(f.name for f in fields(TrainingSetup))
#: Options that say the same, or from which the other follows: what a user states replaces a file's.
_SAME: Final[Mapping[str, tuple[str, ...]]] = {
    "gpus": ("dp",), "dp": ("gpus",), "global-batch": ("grad-accum",), "grad-accum": ("global-batch",),
    "sp": ("no-sp",), "no-sp": ("sp",), "pin-memory": ("no-pin-memory",),
    "no-pin-memory": ("pin-memory",),
}  # fmt: skip


def _replaced(name: str) -> Iterable[str]:
    """Options of a file that an option stated beside it takes the place of."""
    yield from _SAME.get(name, ())
    yield from (_BY_FIELD[field].name for field in REPLACES.get(_field(name), ()))


def options_of_fields(found: Mapping[str, Any], defaults: bool = False) -> dict[str, Value]:
    """Options, by name, that state these fields; others by `--set`.

    defaults: also state values that are memcalc's defaults, which a file's would else replace. What no
    option can state (a field that is open) is left out.
    """
    options: dict[str, Value] = {}
    sets: list[str] = []
    for name, value in found.items():
        if name == "recompute_layers" or value is None:
            continue
        if name == "peft":
            options |= _peft(value)
        elif "." in name:
            sets.append(f"{name}={_text(value)}")
        elif name == "recompute":
            layers = found.get("recompute_layers")
            options["recompute"] = f"full:{layers}" if layers and value == "full" else value
        elif value is False and name in _NEGATED:
            options[_NEGATED[name]] = True
        elif isinstance(value, bool) and name != "reshard":
            options |= _switch(name, value, defaults, sets)
        elif name in _BY_FIELD:
            options[_BY_FIELD[name].name] = _text(value)
        elif name in _TRAINING:
            sets.append(f"training.{name}={_text(value)}")
    if sets:
        options["set"] = sets
    return options


def _switch(name: str, value: bool, defaults: bool, sets: list[str]) -> dict[str, Value]:
    option = _BY_FIELD.get(name)
    if option is not None and value and name != "set_to_none":
        return {option.name: True}
    if name in _TRAINING and (defaults or option is None):
        sets.append(f"training.{name}={_text(value)}")
    return {}


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (tuple, list)):
        return ",".join(map(_text, value))
    return repr(value) if isinstance(value, float) else str(value)


def _peft(peft: PeftSetup) -> dict[str, Value]:
    """The options of a PeftSetup."""
    found: dict[str, Value] = {}
    for option in PEFT_OPTIONS:
        name = option.field.removeprefix("peft.")
        value = getattr(peft, name)
        if name == "method":
            found[option.name] = f"freeze:{peft.layers}" if peft.method == "freeze" else value
        elif value not in (None, (), 0.0):
            found[option.name] = _text(value)
    return found


def plainest(found: Mapping[str, Any]) -> dict[str, Any]:
    """Fields without those that say what the stack, or memcalc's default, has anyway."""
    own = load_stack(str(found.get("stack", "torch"))).parallel
    kept = ("micro_batch_size", "grad_accum_steps", "stack")
    return {
        name: value
        for name, value in found.items()
        if name in kept
        or (own.get(name.removeprefix("stack.")) if name.startswith("stack.") else default_of(name))
        != value
    }


def merged(file: Mapping[str, Value], stated: Mapping[str, Value]) -> dict[str, Value]:
    """Options of a file under those a user states, which win, each with what goes with it."""
    gone = {"set", *stated}
    for name in stated:
        gone |= set(_replaced(name))
    if stated.get("offload") == "none":
        gone |= {"offload-device", "pin-memory", "no-pin-memory"}
    found: dict[str, Value] = {name: value for name, value in file.items() if name not in gone}
    sets = [*_sets(file, stated), *_listed(stated.get("set"))]
    found |= {name: value for name, value in stated.items() if name != "set"}
    if sets:
        found["set"] = sets
    return found


def _sets(file: Mapping[str, Value], stated: Mapping[str, Value]) -> list[str]:
    """The file's --set words that still apply: not of another stack, nor of what an option says."""
    kept = _listed(file.get("set"))
    if "stack" in stated:
        kept = [word for word in kept if not word.startswith(("stack.", "kernels."))]
    said = {_field(name) for name in stated}
    return [word for word in kept if word.partition("=")[0].removeprefix("training.") not in said]


def _field(name: str) -> str:
    return next((field for field, option in _BY_FIELD.items() if option.name == name), name)


def _listed(value: Value | None) -> list[str]:
    return list(value) if isinstance(value, list) else []


def command_of(model: str, options: Mapping[str, Value]) -> str:
    """The `memcalc estimate` command with these options."""
    return " ".join(["memcalc estimate", shlex.quote(model), *words_of(options)])


def words_text(options: Mapping[str, Value]) -> str:
    """Options as words of a command line."""
    return " ".join(words_of(options))


def without(options: Mapping[str, Value], names: Iterable[str]) -> dict[str, Value]:
    """Options but for those named."""
    gone = frozenset(names)
    return {name: value for name, value in options.items() if name not in gone}
