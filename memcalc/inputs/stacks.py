"""Stacks: whose training code is estimated, read from profiles/stacks."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from memcalc.errors import ConfigError
from memcalc.inputs.profiles import find_profile, profile_hash, read_toml


class Stack(NamedTuple):
    """A stack's choices (`norm`, `loss`, `attention`, `family_code`), each with its source."""

    name: str
    description: str
    verified_against: str
    choices: Mapping[str, Any]
    sources: Mapping[str, str]
    profile_hash: str


@lru_cache(maxsize=16)
def load_stack(name: str) -> Stack:
    """The stack of this name; ConfigError names the nearest for an unknown one."""
    path = find_profile("stacks", name)
    raw = read_toml(path)
    kernels = raw.get("kernels", {})
    for key, entry in kernels.items():
        if not isinstance(entry, dict) or {"value", "source"} - entry.keys():
            raise ConfigError(f"{path.name}: kernels.{key}: rule: {{ value = ..., source = ... }}")
    return Stack(
        name=raw["name"],
        description=raw.get("description", ""),
        verified_against=raw.get("verified_against", ""),
        choices={key: entry["value"] for key, entry in kernels.items()},
        sources={key: entry["source"] for key, entry in kernels.items()},
        profile_hash=profile_hash(path),
    )
