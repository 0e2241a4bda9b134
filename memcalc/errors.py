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

    Names that begin with what was written stand before others; of names that differ in case, blanks
    and hyphens alone (`rtx-3080`, `rtx3080`) the closest is given.
    Checked by: unit/test_errors.py.
    """
    import difflib  # only on the way to an error message

    names = sorted(set(valid))
    lowered = {candidate.lower(): candidate for candidate in names}
    hits = difflib.get_close_matches(name.lower(), list(lowered), n=4 * count, cutoff=0.5)
    start = squeezed(name)
    hits.sort(key=lambda hit: not squeezed(hit).startswith(start) if start else 0)
    once = {squeezed(hit): hit for hit in reversed(hits)}
    return [lowered[hit] for hit in hits if once[squeezed(hit)] == hit][:count]


def squeezed(name: str) -> str:
    """A name without what people spell differently: case, blanks, hyphens, dots, underscores."""
    return "".join(char for char in name.lower() if char.isalnum())


def spelled(value: str, choices: Iterable[str]) -> str:
    """A value as the choices write it: `AdamW`, `LoRA`, `llamacpp`; itself where none or two are meant.

    Checked by: unit/test_errors.py.
    """
    same = [choice for choice in choices if squeezed(choice) == squeezed(value)]
    return same[0] if len(same) == 1 and squeezed(value) else value


#: Characters of a list of valid names that an error still prints.
_LISTED = 400


def unknown(what: str, got: str, valid: Iterable[str], see: str = "") -> ConfigError:
    """The error for a name that is not in a closed list, with the nearest names or the whole list.

    see: the command that lists the names, said where the list is too long for a line.
    """
    names = sorted(set(valid))
    close = nearest(got, names)
    if close:
        return ConfigError(f"{what}: got {got!r}, not known; nearest: {', '.join(close)}")
    listing = ", ".join(names)
    if len(listing) > _LISTED:
        listing = f"{len(names)} names" + (f", see `{see}`" if see else f", as {names[0]}")
    return ConfigError(f"{what}: got {got!r}, not known; valid: {listing}")
