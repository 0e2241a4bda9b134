"""Units in and out: GB is decimal, GiB binary, always labelled; counts read k as 1024 or 1000.

Sequence lengths, contexts and batches use k = 1024 (8k = 8192); tokens and samples use decimal k, M, B, T.
"""

from __future__ import annotations

import re

from memcalc.errors import ConfigError

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
_MEMORY = {
    "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": KIB, "mib": MIB, "gib": GIB, "tib": TIB,
}  # fmt: skip
_BINARY_COUNT = {"": 1, "k": 1024, "m": 1024**2}
_DECIMAL_COUNT = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
_NUMBER = re.compile(r"^\s*([0-9]+(?:[_,][0-9]{3})*(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*$")
#: No field of a real run comes near this; larger counts are typing errors (2^53 keeps floats exact).
MAX_COUNT = 1 << 53
#: Longer numbers are not even read: Python refuses to above some thousands of digits.
_MOST_DIGITS = 100


def _split(text: str, what: str) -> tuple[float | int, str]:
    match = _NUMBER.match(text)
    if not match:
        raise ConfigError(
            f"{what}: got {text!r}; rule: a positive number with an optional unit{_in_digits(text)}"
        )
    digits = match.group(1).replace("_", "").replace(",", "")
    if len(digits) > _MOST_DIGITS:
        raise ConfigError(
            f"{what}: got a number of {len(digits)} digits, beyond any real run; rule: at most 2^53"
        )
    number = float(digits) if "." in digits else int(digits)
    return number, match.group(2).lower()


def _in_digits(text: str) -> str:
    """What `1e9` is without an exponent; nothing where the text is no such number."""
    if not re.fullmatch(r"\s*[0-9.]+[eE]\+?[0-9]{1,2}\s*", text) or text.count(".") > 1:
        return ""
    value = float(text)
    return f"; nearest valid: {value:.0f}" if 1 <= value <= MAX_COUNT else ""


def _scaled(text: str, what: str, factors: dict[str, int], units: str) -> int:
    number, unit = _split(text, what)
    if unit not in factors:
        raise ConfigError(f"{what}: got unit {unit!r} in {text!r}; valid: {units}")
    value = number * factors[unit]
    if value > MAX_COUNT * 1024:
        raise ConfigError(f"{what}: got {text!r}, beyond any real run; rule: at most 2^53")
    if value != int(value):
        raise ConfigError(f"{what}: got {text!r}; rule: a whole number")
    return int(value)


def parse_count(text: str, what: str = "count") -> int:
    """A count of positions or sequences: `2048`, `8k` (= 8192), `1m` (= 1048576)."""
    return _scaled(text, what, _BINARY_COUNT, "none, k (1024), m (1024^2)")


def parse_decimal_count(text: str, what: str = "count") -> int:
    """A count of tokens or samples: `1.4T`, `52k` (= 52000)."""
    return _scaled(text, what, _DECIMAL_COUNT, "none, k, M, B, T (decimal)")


def parse_memory(text: str, what: str = "memory") -> int:
    """Bytes from `80GB` (decimal) or `80GiB` (binary); a bare number is refused, for it says neither."""
    number, unit = _split(text, what)
    if unit not in _MEMORY:
        bare = f"; nearest valid: {number:g}GB, {number:g}GiB" if unit in ("", "g") else ""
        raise ConfigError(
            f"{what}: got {text!r}; rule: a number with GB (10^9) or GiB (2^30){bare}"
        )
    value = number * _MEMORY[unit]
    if value > 1 << 60:
        raise ConfigError(f"{what}: got {text!r}, beyond any device; rule: below 1 EiB")
    return round(value)


def gib(value_bytes: float) -> str:
    """Bytes as text with two decimals: GiB from a tenth of one, MiB from a tenth of one, else KiB, B."""
    for factor, unit in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if abs(value_bytes) >= 0.1 * factor:
            return f"{value_bytes / factor:,.2f} {unit}"
    return f"{value_bytes:.0f} B"


def si(value: float, unit: str = "") -> str:
    """A number with a decimal prefix: 8.03 B parameters, 57.9 GFLOP."""
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {prefix}{unit}".rstrip()
    return f"{value:.3g} {unit}".rstrip()


def count_text(value: float) -> str:
    """A count as people say it: 8.03 B parameters, 124 M, 512 k."""
    for factor, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value:g}"
