"""Profiles: facts kept as TOML files, one a model, device, cluster or stack, found by name.

Decides where the files lie and which one a name means, not what is in them. A name is tried as a
file stem first (one file opened), then in normal spelling (lower case, hyphens), then against the
`aliases` of every file of the kind.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from memcalc.errors import ConfigError, unknown
from memcalc.inputs.files import MAX_TOML_BYTES, parse_toml, read_limited, shown

#: Kinds of profiles, each a folder; the value is the word used in messages.
KINDS = {
    "models": "model", "gpus": "gpu", "stacks": "stack", "clusters": "cluster", "weights": "weights",
    "engines": "engine",
}  # fmt: skip
#: Kinds that may also be a file of the user's -> what such a file is.
_FROM_FILES = {
    "models": "a path: config.json, its directory, a .toml file",
    "gpus": "a .toml file of its figures", "clusters": "a .toml file of its figures",
    "stacks": "a .toml file over a known one",
}  # fmt: skip
#: A rate below it is in another unit, as GB/s or TFLOP/s: no link or processor is as slow.
LEAST_RATE = 1e7
#: Longest name accepted; a longer one is not a name.
MAX_NAME = 200
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+()/:-]*")


def profiles_dir() -> Path:
    """The folder with one subfolder per kind: inside the installed package, else the repository's.

    Checked by: unit/test_profiles.py.
    """
    package = Path(__file__).resolve().parents[1]
    installed = package / "_profiles"
    return installed if installed.is_dir() else package.parent / "profiles"


def _folder(kind: str) -> Path:
    if kind not in KINDS:
        raise unknown("profile kind", kind, KINDS)
    return profiles_dir() / kind


def profile_names(kind: str) -> list[str]:
    """The file stems of one kind, sorted; no file is opened. Checked by: unit/test_profiles.py."""
    return sorted(path.stem for path in _folder(kind).glob("*.toml"))


def normal_name(name: str) -> str:
    """A name in file spelling: lower case, blanks and underscores as single hyphens."""
    return re.sub(r"[\s_-]+", "-", name.strip().lower()).strip("-")


def read_toml(path: Path) -> dict[str, Any]:
    """The content of one TOML file; ConfigError in one line when it cannot be read as such.

    Checked by: unit/test_profiles.py.
    """
    data = read_limited(path, MAX_TOML_BYTES, "profile")
    return parse_toml(data, f"profile: got {str(path)!r}; rule:")


def _aliases(path: Path) -> list[str]:
    return list(read_texts(read_toml(path), "aliases", path.name))


def check_name(what: str, name: str) -> None:
    """Raise ConfigError unless this can be a profile's name: no path, no control characters."""
    if not isinstance(name, str) or not name.strip():
        raise ConfigError(f"{what}: got {name!r}; rule: a profile name, see `memcalc list {what}s`")
    if len(name) > MAX_NAME or ".." in name or "//" in name or not _NAME.fullmatch(name.strip()):
        shown = name if len(name) <= 60 else name[:57] + "..."
        raise ConfigError(
            f"{what}: got {shown!r}; rule: a profile name of letters, digits, - . _ or owner/name; "
            f"see `memcalc list {what}s`"
        )


def find_profile(kind: str, name: str) -> Path:
    """The file a name means: exact stem, normal spelling, then aliases, letter case ignored.

    Raises ConfigError naming the nearest stem or alias. Checked by: unit/test_profiles.py.
    """
    folder = _folder(kind)
    check_name(KINDS[kind], name)
    wanted = normal_name(name)
    for stem in (name, wanted):
        path = folder / f"{stem}.toml"
        if "/" not in stem and path.is_file():
            return path
    valid: list[str] = []
    for stem in profile_names(kind):
        path = folder / f"{stem}.toml"
        aliases = _aliases(path)
        if any(normal_name(alias) == wanted for alias in aliases):
            return path
        valid += [stem, *aliases]
    error = unknown(KINDS[kind], name, valid, f"memcalc list {kind}")
    raise ConfigError(f"{error}{_as_a_file(kind, name)}")


def _as_a_file(kind: str, name: str) -> str:
    """What to write where a name is a file that lies here, or else that a file may be named."""
    if "/" in name or kind not in _FROM_FILES:
        return ""
    try:
        here = Path(f"{name}.toml").is_file()
    except (OSError, ValueError):
        here = False
    return f"; nearest valid: {name}.toml, a file here" if here else f"; or {_FROM_FILES[kind]}"


def load_profile(kind: str, name: str) -> dict[str, Any]:
    """The content of the profile a name means, as plain TOML values.

    Raises ConfigError when there is none or it is not TOML. Checked by: unit/test_profiles.py.
    """
    return read_toml(find_profile(kind, name))


def profile_hash(path: Path) -> str:
    """First 12 hex digits of the SHA-256 of a file: names the exact figures an estimate used.

    Checked by: unit/test_profiles.py.
    """
    import hashlib

    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    except OSError as err:
        raise ConfigError(f"profile: cannot read '{path}': {err.strerror}") from err


def check_keys(raw: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    """Raise ConfigError for a key that nobody reads: a figure misspelt would be a figure not stated.

    Checked by: unit/test_hardware.py, unit/test_clusters.py.
    """
    valid = sorted(known)
    for key in raw:
        if key not in valid:
            raise unknown(where, str(key), valid)


def read_figures(
    raw: Mapping[str, Any], keys: Iterable[str], where: str
) -> tuple[dict[str, float], list[str]]:
    """The numbers a profile states under these keys, and which of them have no second source.

    A figure is a table of value, source and verified; in a user's own file a bare number will do.
    Raises ConfigError unless each is a positive number, a rate one in base units.
    Checked by: unit/test_hardware.py.
    """
    values: dict[str, float] = {}
    unverified: list[str] = []
    for key in keys:
        if key not in raw:
            continue
        entry = raw[key] if isinstance(raw[key], dict) else {"value": raw[key]}
        value = entry.get("value")
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not 1e-3 <= value < 1e20
        ):
            raise ConfigError(
                f"{where}: {key}: got {shown(value)}; rule: a positive number, 0.001 to 1e20"
            )
        if key.endswith("_per_s") and value < LEAST_RATE:
            unit = "bytes/s" if "bytes" in key else "FLOP/s"
            nearest = f"{value:g}e{9 if 'bytes' in key else 12}"
            raise ConfigError(
                f"{where}: {key}: got {shown(value)}; rule: {unit}; nearest valid: {nearest}"
            )
        values[key] = value
        if not entry.get("verified", False):
            unverified.append(key)
    return values, unverified


def read_texts(raw: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    """Sentences of a profile, such as its notes. Checked by: unit/test_malicious.py."""
    found = raw.get(key, [])
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise ConfigError(f"{where}: {key}: got {shown(found)}; rule: a list of strings")
    return tuple(found)


def read_text(raw: Mapping[str, Any], key: str, where: str) -> str | None:
    """A word or sentence of a profile; None where it has none. Checked by: unit/test_hardware.py."""
    value = raw.get(key)
    if value is not None and not isinstance(value, str):
        rule = f'a string; nearest valid: "{value}"' if isinstance(value, float) else "a string"
        raise ConfigError(f"{where}: {key}: got {shown(value)}; rule: {rule}")
    return value
