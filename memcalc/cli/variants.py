"""Cases of a command line: every list, range and --setup crossed, each one resolved.

The model is the first axis, the others follow in the order given, the last one runs fastest. What is
wrong with one value is an error; values that do not go together make a refused case among the others.
Each case carries the command that prices it alone. Checked by: cli/test_variants.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from math import prod
from typing import Any, NamedTuple

from memcalc.cli.options import BY_NAME
from memcalc.cli.parse import Arguments, Value, check_positionals
from memcalc.cli.variant_cases import Maker
from memcalc.cli.variant_lists import (
    KNOWN,
    MOST,
    SETUP_PANELS,
    distinct,
    takes_list,
    values_of,
)
from memcalc.cli.variant_setups import Bundle, bundles_of
from memcalc.errors import ConfigError
from memcalc.inputs.models import load_model
from memcalc.planning.cases import Case, Refused


class _Crossed(NamedTuple):
    """A command line taken apart: one value of each option, and the axes of those with several."""

    base: dict[str, Value]
    axes: dict[str, list[str | Bundle]]


def cases_of(arguments: Arguments) -> list[Case | Refused]:
    """Every case of a command, resolved. Raises ConfigError for bad values, and where none can be priced.

    Also writes the run file of --save.
    """
    return _cases(arguments, _crossed(arguments))


def _cases(arguments: Arguments, crossed: _Crossed) -> list[Case | Refused]:
    base, axes = crossed
    if (path := arguments.text("save")) is not None:
        from memcalc.cli.runfile import save_run_file

        save_run_file(_stated(arguments), path)
    maker = Maker()
    found = [
        maker.case(_labels(axes, picked), _options(base, axes, picked))
        for picked in product(*axes.values())
    ]
    refused = [case for case in found if isinstance(case, Refused)]
    if len(refused) == len(found):
        raise ConfigError(refused[0].reason)
    return found


def differing(arguments: Arguments) -> list[str]:
    """Names of the options crossed, the model first, then in the order given."""
    return list(_crossed(arguments).axes)


def case_of(arguments: Arguments) -> Case:
    """The one case of a command that takes no lists. Raises ConfigError naming the option of a list."""
    crossed = _crossed(arguments)
    for name, values in crossed.axes.items():
        what = " ".join([arguments.command, *arguments.positionals[:1]])
        shown = what if arguments.command == "chart" else arguments.command
        raise ConfigError(f"--{name}: got {len(values)} values; rule: one for {shown}")
    case = _cases(arguments, crossed)[0]
    assert isinstance(case, Case)
    return case


def _stated(arguments: Arguments) -> Arguments:
    """The arguments with the run file's, and without chart's KIND. The given ones are left as they are."""
    check_positionals(arguments, given_elsewhere=1)  # MODEL may be the run file's, or of --model
    own = 1 if arguments.command == "chart" else 0
    found = Arguments(arguments.command, arguments.positionals[own:], dict(arguments.options))
    if (path := arguments.text("config")) is not None:
        from memcalc.cli.runfile import merge_run_file

        merge_run_file(found, path)
        if "model" in arguments.options and not arguments.positionals[own:]:
            found.positionals = []
    if found.positionals and "model" in found.options:
        raise ConfigError("--model: got MODEL too; rule: one of them")
    return found


def _crossed(arguments: Arguments) -> _Crossed:
    stated = _stated(arguments)
    given: dict[str, Value] = {}
    if stated.positionals:
        given["model"] = stated.positionals[0]
    given |= {"model": stated.options["model"]} if "model" in stated.options else {}
    given |= {name: value for name, value in stated.options.items() if name != "model"}
    base: dict[str, Value] = {}
    axes: dict[str, list[str | Bundle]] = {}
    for name, value in given.items():
        option = BY_NAME[name]
        if name == "setup":
            axes["setup"] = []
        elif isinstance(value, str) and takes_list(option):
            values = distinct(name, values_of(option, value))
            if len(values) > 1:
                axes[name] = list(values)
            base[name] = values[0]
        elif option.panel in SETUP_PANELS:
            base[name] = value
    texts = stated.options.get("setup")
    if isinstance(texts, list):
        axes["setup"] = list(bundles_of(texts, axes))
    _check_models(arguments, base, axes)
    sizes = {name: len(values) for name, values in axes.items()}
    if prod(sizes.values()) > MOST:
        crossed = " x ".join(f"{count:,} {name}" for name, count in sizes.items())
        raise ConfigError(
            f"{arguments.command}: got {prod(sizes.values()):,} cases ({crossed}); rule: at most "
            f"{MOST:,}"
        )
    return _fold_single_setup(_Crossed(base, axes))


def _check_models(
    arguments: Arguments, base: Mapping[str, Value], axes: Mapping[str, list[str | Bundle]]
) -> None:
    bundles = [bundle for bundle in axes.get("setup", []) if isinstance(bundle, Bundle)]
    if "model" not in base and not (bundles and all(bundle.model for bundle in bundles)):
        ways = "MODEL, as `memcalc list models` has them"
        if arguments.command != "report":
            ways += ", or --model a,b"
        raise ConfigError(f"{arguments.command}: got no model; rule: {ways}")
    for bundle in bundles:
        if bundle.model is not None:
            load_model(bundle.model)
        _check_profiles(bundle.options)


def _check_profiles(options: Mapping[str, Value]) -> None:
    for name, check in KNOWN.items():
        if isinstance(value := options.get(name), str):
            check(value)


def _fold_single_setup(crossed: _Crossed) -> _Crossed:
    """One --setup alone tells no cases apart: its options become the command's."""
    bundles = crossed.axes.get("setup", [])
    if len(bundles) != 1:
        return crossed
    (bundle,) = bundles
    assert isinstance(bundle, Bundle)
    axes = {name: values for name, values in crossed.axes.items() if name != "setup"}
    return _Crossed(_with_bundle(crossed.base, bundle), axes)


def _labels(axes: Mapping[str, Any], picked: tuple[str | Bundle, ...]) -> dict[str, str]:
    texts = (value.label if isinstance(value, Bundle) else value for value in picked)
    return dict(zip(axes, texts, strict=True))


def _options(
    base: Mapping[str, Value], axes: Mapping[str, Any], picked: tuple[str | Bundle, ...]
) -> dict[str, Value]:
    found = dict(base)
    for name, value in zip(axes, picked, strict=True):
        if isinstance(value, Bundle):
            found = _with_bundle(found, value)
        else:
            found[name] = value
    return found


def _with_bundle(options: Mapping[str, Value], bundle: Bundle) -> dict[str, Value]:
    said = {_target(name) for name in bundle.options}
    found = {name: value for name, value in options.items() if _target(name) not in said}
    found |= bundle.options
    first, last = options.get("set"), bundle.options.get("set")
    if isinstance(first, list) and isinstance(last, list):
        found["set"] = [*first, *last]
    if bundle.model is not None:
        found["model"] = bundle.model
    return found


def _target(name: str) -> str:
    """What an option sets: --sp and --no-sp are about one thing."""
    option = BY_NAME[name]
    return option.field or option.parallel or name
