"""From one value of each option to a case: what `memcalc estimate` would take, and its command line.

Models, setups, layouts and devices are made once for each combination of their own options, so that
cases share the same objects where their options are the same. Checked by: cli/test_variants.py.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from memcalc.cli.options import BY_NAME
from memcalc.cli.overrides import Overrides, parse_overrides
from memcalc.cli.parse import Arguments, Value
from memcalc.cli.request import device_stated, layout_stated, setup_fields
from memcalc.errors import ConfigError
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.models import load_model
from memcalc.inputs.training import TrainingSetup
from memcalc.planning.cases import Case, Refused

_DEVICE = frozenset({"gpu", "gpu-memory", "cluster", "calibration", "reserve"})
Items = tuple[tuple[str, Any], ...]


class Maker:
    """Resolves cases; what several of them share is made once."""

    def __init__(self) -> None:
        self.setup = cache(_setup)
        self.layout = cache(lambda items: layout_stated(_arguments(items)))
        self.device = cache(lambda items: device_stated(_arguments(items)))
        self.model = cache(_model)

    def case(self, labels: dict[str, str], options: dict[str, Value]) -> Case | Refused:
        """One case, or why its options do not go together."""
        name = str(options.pop("model"))
        stated = options.get("set")
        sets = tuple(stated) if isinstance(stated, list) else ()
        training, layout, device = _sorted_out(options)
        command = " ".join(["memcalc estimate", _quoted(name), *words_of(options)])
        try:
            return Case(
                labels, command, name, self.model(name, sets), self.setup(training, sets),
                self.layout(layout), _overrides(sets).kernels, self.device(device),
            )  # fmt: skip
        except ConfigError as error:
            return Refused(labels, command, str(error))


def _sorted_out(options: Mapping[str, Value]) -> tuple[Items, Items, Items]:
    """Options of the training setup, of the layout and of the device."""
    training, layout, device = [], [], []
    for item in options.items():
        option = BY_NAME[item[0]]
        if option.field:
            training.append(item)
        elif option.parallel:
            layout.append(item)
        elif item[0] in _DEVICE:
            device.append(item)
    return tuple(training), tuple(layout), tuple(device)


def _arguments(items: Items) -> Arguments:
    return Arguments("estimate", [], dict(items))


def _setup(items: Items, sets: tuple[str, ...]) -> TrainingSetup:
    return TrainingSetup(**{**setup_fields(_arguments(items)), **_overrides(sets).training})


def _model(name: str, sets: tuple[str, ...]) -> ModelConfig:
    return _overrides(sets).apply_to_model(load_model(name))


@cache
def _overrides(sets: tuple[str, ...]) -> Overrides:
    return parse_overrides(list(sets))


def words_of(options: Mapping[str, Value]) -> Iterator[str]:
    """The options as words of a command line."""
    for name, value in options.items():
        if value is True:
            yield f"--{name}"
        elif isinstance(value, list):
            yield from (f"--{name} {_quoted(one)}" for one in value)
        else:
            yield f"--{name} {_quoted(str(value))}"


@cache
def _quoted(text: str) -> str:
    return shlex.quote(text)
