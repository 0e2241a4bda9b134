"""--setup: options that go together, each bundle one of the setups to compare.

A bundle is what follows `memcalc estimate`: options, and a model if it has one of its own. It may have a
name, which labels it in tables and pictures: --setup "FSDP: --fsdp --recompute full". What it says wins
over the same option beside it; a list beside it would say it twice, and is refused.
Checked by: cli/test_variants.py.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Container
from typing import Final, NamedTuple

from memcalc.cli.app import parse_arguments
from memcalc.cli.options import BY_NAME
from memcalc.cli.parse import Value
from memcalc.cli.variant_lists import SETUP_PANELS, takes_list, values_of
from memcalc.errors import ConfigError

#: Label of a bundle without options: what the rest of the command says.
AS_STATED: Final = "as stated"
_NAMED: Final = re.compile(r"\s*(?P<name>[^-\s:][^:]*):(?:\s+(?P<rest>.*))?", re.DOTALL)


class Bundle(NamedTuple):
    """One --setup: its label, its options by name, and its own model if it names one."""

    label: str
    options: dict[str, Value]
    model: str | None


def bundle_of(text: str) -> Bundle:
    """Read one --setup. Raises ConfigError, with the option's name before what is wrong."""
    named = _NAMED.fullmatch(text)
    rest = (named["rest"] or "") if named else text
    try:
        words = shlex.split(rest)
    except ValueError as error:
        raise ConfigError(f"--setup: got {text!r}; rule: closed quotes ({error})") from None
    try:
        read = parse_arguments("estimate", words)
    except ConfigError as error:
        raise ConfigError(f"--setup {text!r}: {error}") from None
    if len(read.positionals) > 1:
        raise ConfigError(f"--setup: got {text!r}; rule: options, and one model at most")
    for name, value in read.options.items():
        _check(text, name, value)
    label = named["name"].strip() if named else " ".join(text.split())
    return Bundle(
        label or AS_STATED, read.options, read.positionals[0] if read.positionals else None
    )


def _check(text: str, name: str, value: Value) -> None:
    option = BY_NAME[name]
    if option.panel not in SETUP_PANELS:
        raise ConfigError(f"--setup {text!r}: got {option.flag}; rule: beside --setup, not in it")
    if takes_list(option) and isinstance(value, str) and len(values_of(option, value)) > 1:
        raise ConfigError(
            f"--setup {text!r}: got {option.flag} {value}; rule: one value; lists stand beside --setup"
        )


def bundles_of(texts: list[str], listed: Container[str]) -> list[Bundle]:
    """Every bundle once. listed: names of the options that are lists. Raises ConfigError."""
    found: list[Bundle] = []
    for text in texts:
        bundle = bundle_of(text)
        if any(bundle[1:] == other[1:] for other in found):
            continue
        if any(bundle.label == other.label for other in found):
            raise ConfigError(f"--setup: got {bundle.label!r} twice; rule: a name of its own each")
        for name in bundle.options:
            if name in listed:
                raise ConfigError(f"--setup: got --{name}, a list beside it; rule: in one place")
        if bundle.model is not None and "model" in listed:
            raise ConfigError("--setup: got a model, a list beside it; rule: in one place")
        found.append(bundle)
    return found
