"""A user's own stack: a TOML file beside a shipped one, whose entries it states otherwise.

The file names its `base`; what it does not state is the base's, and the rules tied to a stack's name
(which layouts it has, what can be compiled) are the base's too.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from memcalc.errors import ConfigError, unknown
from memcalc.inputs.files import check_shape, shown
from memcalc.inputs.profiles import find_profile, profile_names, read_toml
from memcalc.inputs.training_names import ATTENTIONS, LOSSES, NORMS

_TABLES: Final = ("kernels", "parallel")
_FILE: Final = {
    "name": str, "base": str, "description": str, "verified_against": str, "kernels": dict,
    "parallel": dict,
}  # fmt: skip
#: Entries that a stack may state though no shipped one does.
_MORE: Final[Mapping[str, Any]] = {
    "watched": False, "fused_gate_up": False, "cuda_graphs": False, "fp8_gather": False,
}  # fmt: skip
#: What is valid beyond the words that shipped stacks use.
_WORDS: Final = {"attention": ATTENTIONS, "loss": LOSSES, "norm": NORMS}
_MOST: Final = 10**15


def own_stack(path: Path) -> dict[str, Any]:
    """The content of a user's stack laid over its base, in the form of a shipped profile.

    An entry is { value, source } or the bare value. Raises ConfigError for an unknown table, entry or
    word, and for a value of another type than shipped stacks have. Checked by: unit/test_own_stack.py.
    """
    raw = read_toml(path)
    check_shape(raw, _FILE, path.name)
    for key in raw:
        if key not in _FILE:
            raise unknown(f"{path.name}", key, _FILE)
    base = read_toml(find_profile("stacks", raw.get("base", "torch")))
    merged = {**base, "base": base["name"], "name": str(path)}
    merged["description"] = raw.get("description", f"{base['name']} with entries of {path.name}")
    said = f"stack {base['name']}, with entries of {path.name} that nothing was held against"
    merged["verified_against"] = raw.get("verified_against", said)
    for table in _TABLES:
        own = {
            key: _entry(f"{path.name}: {table}", key, entry, _known(table))
            for key, entry in raw.get(table, {}).items()
        }
        merged[table] = {**base.get(table, {}), **own}
    return merged


def _entry(where: str, key: str, entry: Any, known: Mapping[str, list[Any]]) -> dict[str, Any]:
    """One entry with its source, its value checked against those of shipped stacks."""
    if key not in known:
        raise unknown(where, key, known)
    is_table = isinstance(entry, dict)
    if is_table and ("value" not in entry or entry.keys() - {"value", "source"}):
        rule = "{ value = ..., source = ... }"
        raise ConfigError(f"{where}.{key}: got {shown(entry)}; rule: {rule}")
    value = entry["value"] if is_table else entry
    source = entry.get("source") if is_table else None
    check_shape(source, str, f"{where}.{key}.source")
    _check(f"{where}.{key}", value, known[key])
    return {"value": value, "source": source or "the user's own file"}


def _check(where: str, value: Any, seen: list[Any]) -> None:
    """Raise ConfigError unless a value is of the kind, and a word one of those, that were seen."""
    kind = type(seen[0])
    words = {bool: "true or false", int: f"a whole number, 0 to {_MOST:.0e}", list: "a list"}
    if kind is str:
        if value not in seen:
            raise ConfigError(f"{where}: got {shown(value)}; valid: {', '.join(sorted(seen))}")
    elif type(value) is not kind or (kind is int and not 0 <= value <= _MOST):
        raise ConfigError(f"{where}: got {shown(value)}; rule: {words[kind]}")
    elif kind is list:
        valid = sorted({word for one in seen for word in one})
        if wrong := [word for word in value if word not in valid]:
            raise ConfigError(f"{where}: got {shown(wrong[0])}; valid: {', '.join(valid)}")


@lru_cache(maxsize=2)
def _known(table: str) -> dict[str, list[Any]]:
    """Every entry that a shipped stack states in a table, with the values seen."""
    seen: dict[str, list[Any]] = {}
    for name in profile_names("stacks"):
        for key, entry in read_toml(find_profile("stacks", name)).get(table, {}).items():
            seen.setdefault(key, []).append(entry["value"])
    if table == "kernels":
        seen |= {key: [value] for key, value in _MORE.items()}
        seen |= {key: list(words) for key, words in _WORDS.items()}
        seen["layer_code"] = [*seen["layer_code"], "plain"]
    return seen
