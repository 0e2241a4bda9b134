"""Lists and ranges: the values that the text of one option stands for.

    1,2,4    these          1..8    every whole number          1..8:2    1, 3, 5, 7
    1k..16k*2    1k, 2k, 4k, 8k, 16k          none,full    names          h100,h200    profiles

Ranges are of counts, numbers and stages, both ends included where a step reaches them. A value that was
said before is left out: 1k and 1024 are one. Commas part values here, so 1,024 is refused; and so is
1..16k, whose ends have different units and which would be thousands of values, unless a step is stated.
Checked by: cli/test_variants.py.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from memcalc.cli.option import Option
from memcalc.cli.overrides import number
from memcalc.cli.request import typed
from memcalc.errors import ConfigError
from memcalc.inputs.calibrations import find
from memcalc.inputs.choose_rates import AUTO
from memcalc.inputs.clusters import load_cluster
from memcalc.inputs.hardware import load_gpu
from memcalc.inputs.models import load_model
from memcalc.inputs.rates import DEFAULT
from memcalc.inputs.stacks import load_stack
from memcalc.units import parse_count, parse_memory

#: Panels of the options that a setup is made of; `--setup` and lists are of these.
SETUP_PANELS: Final = ("Model", "Training", "Parallelism", "Hardware")
#: More cases than this are refused: what one looks at is far less.
MOST: Final = 20_000
_LISTED: Final = frozenset(
    {"text", "name", "count", "number", "memory", "stage", "recompute", "reshard", "peft"}
)
_RANGED: Final = frozenset({"count", "number", "stage"})
_RANGE: Final = re.compile(r"(?P<low>[^:*]*?)\.\.(?P<high>[^:*]*)(?:(?P<how>[:*])(?P<by>.*))?")
_FORMS: Final = "FROM..TO, FROM..TO:STEP or FROM..TO*FACTOR"


def takes_list(option: Option) -> bool:
    """Whether a list may stand for the option: its own values have no commas."""
    return option.kind in _LISTED and (option.panel in SETUP_PANELS or option.name == "model")


def values_of(option: Option, text: str) -> list[str]:
    """The values of one option, each as the text `estimate` takes. Raises ConfigError."""
    if not text.replace(",", "").strip():
        raise ConfigError(
            f"{option.flag}: got {'an empty value' if not text.strip() else repr(text)}; rule: a "
            "value, or values with commas between them"
        )
    if option.kind == "name" and os.path.exists(os.path.expanduser(text)):
        return [text]
    found: dict[Any, str] = {}
    for part in text.split(","):
        for value in _expanded(option, part.strip(), text):
            found.setdefault(_identity(option, value), value)
    return list(found.values())


def _expanded(option: Option, part: str, text: str) -> Iterator[str]:
    if not part:
        raise ConfigError(f"{option.flag}: got {text!r}; rule: no value between commas is empty")
    if option.kind in _RANGED and len(part) > 1 and part[0] == "0" and part.isdecimal():
        raise ConfigError(
            f"{option.flag}: got {text!r}; rule: commas part values; nearest valid: "
            f"{text.replace(',', '')}"
        )
    if option.kind in _RANGED and re.fullmatch(r"\d+[kKmM]?\s*-\s*\d+[kKmM]?", part):
        low, _, high = part.partition("-")
        raise ConfigError(
            f"{option.flag}: got {part!r}; rule: {_FORMS}; nearest valid: "
            f"{low.strip()}..{high.strip()}"
        )
    if option.kind in _RANGED and ".." in part:
        yield from _range(option, part)
    else:
        yield part


def _identity(option: Option, text: str) -> Any:
    """What makes two texts one value. Raises ConfigError where the text is none of the option's."""
    if option.kind == "memory":
        return parse_memory(text, option.flag)
    return typed(option, text)


def _range(option: Option, part: str) -> list[str]:
    """The values of FROM..TO, by steps of one, of STEP, or each the last one times FACTOR."""
    found = _RANGE.fullmatch(part)
    ends = (found["low"].strip(), found["high"].strip()) if found else ("", "")
    by = found["by"].strip() if found and found["how"] else "1"
    if not found or not all(ends) or not by:
        raise ConfigError(f"{option.flag}: got {part!r}; rule: {_FORMS}")
    read = _number if option.kind == "number" else _count
    low, high = (read(end, option.flag) for end in ends)
    step = read(by, f"{option.flag} {part}")
    if low > high:
        raise ConfigError(
            f"{option.flag}: got {part!r}; rule: the smaller first; nearest valid: "
            f"{ends[1]}..{ends[0]}"
        )
    units = [re.sub(r"[^A-Za-z]", "", end).lower() for end in ends]
    if units[0] != units[1] and not found["how"]:
        raise ConfigError(
            f"{option.flag}: got {part!r}; rule: both ends in one unit, or a step; nearest valid: "
            f"{part}*2"
        )
    if found["how"] == "*":
        if step <= 1 or low <= 0:
            raise ConfigError(f"{option.flag}: got {part!r}; rule: above 0, times more than 1")
        values = _walk(option.flag, part, low, high, lambda value: value * step)
    else:
        if step <= 0:
            raise ConfigError(f"{option.flag}: got {part!r}; rule: a step above 0")
        values = _walk(option.flag, part, low, high, lambda value: value + step)
    in_k = option.kind == "count" and all(end[-1:].lower() == "k" for end in ends)
    return [_text(value, in_k) for value in values]


def _walk(
    flag: str, part: str, low: float, high: float, onward: Callable[[float], float]
) -> list[float]:
    values, value = [], low
    while value <= high * (1 + 1e-12):
        values.append(value)
        if len(values) > MOST:
            step = values[1] - values[0]
            count = (high - low) / step + 1
            said = f"{int(count):,}" if count < 1e15 else f"about {count:.1g}"
            raise ConfigError(f"{flag}: got {part!r}, {said} values; rule: at most {MOST:,}")
        value = onward(value)
    return values


def _number(text: str, what: str) -> float:
    return number(text, what)


def _count(text: str, what: str) -> int:
    return parse_count(text, what)


def _text(value: float, in_k: bool) -> str:
    """A value of a range as people write it; `2k` where both ends were written so."""
    if in_k and value % 1024 == 0:
        return f"{int(value) // 1024}k"
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def distinct(name: str, values: list[str]) -> list[str]:
    """Profiles by another of their names are the same value. Raises ConfigError for unknown ones."""
    if name == "model":
        return _first_of_each(values, load_model)
    if name == "gpu":
        return _first_of_each(values, lambda v: v if v == "local" else load_gpu(v)[0].slug)
    if (check := KNOWN.get(name)) is not None:
        for value in values:
            check(value)
    return values


def _check_calibration(name: str) -> None:
    if name.strip() not in (DEFAULT, AUTO):
        find(name.strip())


#: Options whose value is a profile's name -> what raises ConfigError for one that is not known.
KNOWN: Final[Mapping[str, Callable[[str], object]]] = {
    "gpu": lambda name: None if name == "local" else load_gpu(name),
    "cluster": load_cluster, "stack": load_stack, "calibration": _check_calibration,
}  # fmt: skip


def _first_of_each(values: list[str], meaning: Callable[[str], object]) -> list[str]:
    found: dict[object, str] = {}
    for value in values:
        found.setdefault(meaning(value), value)
    return list(found.values())
