"""What a file of default constants may hold, checked before anything reads it: texts, numbers, curves.

Which figures a formula needs is checked where it takes them (inputs/rates.py); here is only what kind of
value stands where, so that a file written by hand is refused in one line. Checked by: unit/test_malicious.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from memcalc.errors import ConfigError
from memcalc.inputs.files import LARGEST, NUMBER, check_shape, shown

_ERROR: Final = {
    "form!": str, "system!": str, "what": str, "sizes!": str, "n!": int, "mean_abs!": NUMBER,
    "bias!": NUMBER, "p90!": NUMBER, "plain_mean_abs!": NUMBER, "class_mean_abs": NUMBER,
}  # fmt: skip
#: What is no constant; every other entry is a number, a curve of numbers, or a table of them.
_HEAD: Final[Mapping[str, Any]] = {
    "schema": int, "kind": str, "name!": str, "basis!": str, "verified": bool, "reference": str,
    "architectures": [str], "fitted_on": [str], "errors": [_ERROR], "gpu": dict,
}  # fmt: skip
#: A point of a curve of a collective: two lines of seconds over bytes.
_CURVE: Final = {f"{name}!": NUMBER for name in (
    "ranks", "small_s", "small_share", "large_s", "large_share")}  # fmt: skip


def check_head(raw: Mapping[str, Any], where: str) -> None:
    """Raise ConfigError unless the names, lists and errors of a default calibration are what they must be."""
    check_shape(raw, _HEAD, where)


def check_constants(raw: Mapping[str, Any], where: str) -> None:
    """Raise ConfigError unless every entry of a default calibration is of the kind it has there."""
    check_head(raw, where)
    known = {name.removesuffix("!") for name in _HEAD} - {"gpu"}
    for key, value in raw.items():
        if key not in known:
            _check(value, f"{where}: {key}", key)


def _check(value: Any, where: str, key: str) -> None:
    if isinstance(value, Mapping):
        for inner, entry in value.items():
            _check(entry, f"{where}.{inner}", inner)
    elif isinstance(value, list):
        check_shape(value, [_CURVE], where)
    elif key.endswith("source"):
        check_shape(value, str, where)
    elif isinstance(value, bool) or not isinstance(value, NUMBER) or not abs(value) < LARGEST:
        raise ConfigError(f"{where}: got {shown(value)}; rule: a finite number")
