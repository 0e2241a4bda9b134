"""A user's own stack: a TOML file beside a shipped one, whose entries it states otherwise.

The file names its `base`; what it does not state is the base's. What makes the base's code the one it is
(whose layers, whose sharding, whose stages) stays as it is, and so do the rules tied to its name: which
layouts it has, what can be compiled.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from memcalc.errors import ConfigError, unknown
from memcalc.inputs.files import check_shape, shown
from memcalc.inputs.profiles import check_keys, find_profile, profile_names, read_toml
from memcalc.inputs.training_names import LOSSES, NORMS

_TABLES: Final = ("kernels", "parallel")
_FILE: Final = {
    "name": str, "base": str, "description": str, "verified_against": str, "kernels": dict,
    "parallel": dict,
}  # fmt: skip
#: Switches that a stack may state though its base does not.
_SWITCHES: Final = (
    "fused_gate_up", "cuda_graphs", "packed", "compile_loss", "fp8_gather", "expandable_segments",
)  # fmt: skip
_WORDS: Final = {"loss": LOSSES, "norm": NORMS}
#: Entries that say whose code runs.
_OF_THE_BASE: Final = (
    "family_code", "layer_code", "compile", "unties", "code", "states", "tensor", "pipeline", "experts",
    "schedules", "odd_views_run_in", "sends_in_turn",
)  # fmt: skip
_MOST: Final = 10**15


def own_stack(path: Path) -> dict[str, Any]:
    """The content of a user's stack laid over its base, in the form of a shipped profile.

    An entry is { value, source } or the bare value. Raises ConfigError for an unknown table or entry, for
    a value of another type or word than shipped stacks have, and for another code than the base's.
    Checked by: unit/test_own_stack.py.
    """
    raw = read_toml(path)
    check_shape(raw, _FILE, path.name)
    check_keys(raw, _FILE, path.name)
    base = read_toml(find_profile("stacks", raw.get("base", "torch")))
    merged = {**base, "base": base["name"], "name": str(path)}
    merged["description"] = raw.get("description", f"{base['name']} with entries of {path.name}")
    said = f"stack {base['name']}, with entries of {path.name} that nothing was held against"
    merged["verified_against"] = raw.get("verified_against", said)
    for table in _TABLES:
        theirs = base.get(table, {})
        own = {
            key: _entry(f"{path.name}: {table}", key, entry, theirs)
            for key, entry in raw.get(table, {}).items()
        }
        merged[table] = {**theirs, **own}
    return merged


def _entry(where: str, key: str, entry: Any, theirs: Mapping[str, Any]) -> dict[str, Any]:
    """One entry with its source, its value checked against the base's."""
    known = [*theirs, *([*_WORDS, *_SWITCHES] if where.endswith("kernels") else [])]
    if key not in known:
        raise unknown(where, key, known)
    is_table = isinstance(entry, dict)
    if is_table and ("value" not in entry or entry.keys() - {"value", "source"}):
        rule = "{ value = ..., source = ... }"
        raise ConfigError(f"{where}.{key}: got {shown(entry)}; rule: {rule}")
    value = entry["value"] if is_table else entry
    source = entry.get("source") if is_table else None
    check_shape(source, str, f"{where}.{key}.source")
    _check(where, key, value, theirs.get(key, {"value": False})["value"])
    return {"value": value, "source": source or "the user's own file"}


def _check(table: str, key: str, value: Any, base: Any) -> None:
    """Raise ConfigError unless a value may stand in the place of the base's."""
    where, kind = f"{table}.{key}", type(base)
    if key == "attention" and value != base:
        raise ConfigError(f"{where}: got {shown(value)}; rule: --attention states it")
    if key in (*_OF_THE_BASE, "attention"):
        if type(value) is not kind or value != base:
            rule = f"{shown(base)}, the base's; a file with another base otherwise"
            raise ConfigError(f"{where}: got {shown(value)}; rule: {rule}")
        return
    if kind is str:
        valid = _WORDS.get(key) or _seen(table.rpartition(" ")[2], key)
        if not isinstance(value, str) or value not in valid:
            raise ConfigError(f"{where}: got {shown(value)}; valid: {', '.join(valid)}")
    elif type(value) is not kind or (kind is int and not 0 <= value <= _MOST):
        words = {bool: "true or false", int: f"a whole number, 0 to {_MOST:.0e}"}
        raise ConfigError(f"{where}: got {shown(value)}; rule: {words.get(kind, 'a list')}")
    elif kind is list:
        valid = _seen(table.rpartition(" ")[2], key)
        if wrong := [word for word in value if word not in valid]:
            raise ConfigError(f"{where}: got {shown(wrong[0])}; valid: {', '.join(valid)}")


def _seen(table: str, key: str) -> tuple[str, ...]:
    """The words that shipped stacks state for an entry."""
    found: set[str] = set()
    for name in profile_names("stacks"):
        value = read_toml(find_profile("stacks", name)).get(table, {}).get(key, {}).get("value")
        found.update(value if isinstance(value, list) else [value] if value else [])
    return tuple(sorted(found))
