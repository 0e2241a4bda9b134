"""The errors memcalc raises on purpose.

An input error says what was wrong, what was got, the rule and the nearest valid value, in one line.
"Does not fit" is a result, never an exception; broken invariants of our own are `assert`s.
"""

from __future__ import annotations

from collections.abc import Iterable


class MemcalcError(Exception):
    """Root of every error raised on purpose; the command line prints it in one line and exits 2."""


class ConfigError(MemcalcError, ValueError):
    """What the user stated cannot be used: unknown name, value out of range, unreadable file."""


class NotInThisVersionError(ConfigError):
    """An option of the contract whose capability this version does not have yet."""


def nearest(name: str, valid: Iterable[str], count: int = 3) -> list[str]:
    """The valid names closest to a misspelt one, best first; empty when nothing is close.

    Checked by: unit/test_errors.py.
    """
    import difflib  # only on the way to an error message

    names = sorted(set(valid))
    lowered = {candidate.lower(): candidate for candidate in names}
    hits = difflib.get_close_matches(name.lower(), list(lowered), n=count, cutoff=0.5)
    return [lowered[hit] for hit in hits]


#: Characters of a list of valid names that an error still prints.
_LISTED = 400


def unknown(what: str, got: str, valid: Iterable[str]) -> ConfigError:
    """The error for a name that is not in a closed list, with the nearest names or the whole list."""
    names = sorted(set(valid))
    close = nearest(got, names)
    if close:
        return ConfigError(f"{what}: got {got!r}, not known; nearest: {', '.join(close)}")
    listing = ", ".join(names)
    if len(listing) > _LISTED:
        listing = f"{len(names)} names, see `memcalc list`"
    return ConfigError(f"{what}: got {got!r}, not known; valid: {listing}")
