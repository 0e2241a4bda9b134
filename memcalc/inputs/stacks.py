"""Stacks: whose training code is estimated, read from profiles/stacks."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple

from memcalc.errors import ConfigError
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.profiles import find_profile, profile_hash, read_toml

#: Entries of a stack's `[parallel]` that a layout may state otherwise.
_OVERLAPS: Final = ("overlap_grad_reduce", "overlap_param_gather")


class Stack(NamedTuple):
    """A stack's choices (`norm`, `loss`, `attention`, `family_code`), each with its source.

    parallel: how it divides a model and its states: buckets, buffers, dtypes, what is on by default.
    """

    name: str
    description: str
    verified_against: str
    choices: Mapping[str, Any]
    sources: Mapping[str, str]
    profile_hash: str
    parallel: Mapping[str, Any] = {}  # noqa: RUF012  # never changed


@lru_cache(maxsize=16)
def load_stack(name: str) -> Stack:
    """The stack of this name; ConfigError names the nearest for an unknown one."""
    path = find_profile("stacks", name)
    raw = read_toml(path)
    kernels, parallel = raw.get("kernels", {}), raw.get("parallel", {})
    for table, entries in (("kernels", kernels), ("parallel", parallel)):
        for key, entry in entries.items():
            if not isinstance(entry, dict) or {"value", "source"} - entry.keys():
                rule = "{ value = ..., source = ... }"
                raise ConfigError(f"{path.name}: {table}.{key}: rule: {rule}")
    return Stack(
        name=raw["name"],
        description=raw.get("description", ""),
        verified_against=raw.get("verified_against", ""),
        choices={key: entry["value"] for key, entry in kernels.items()},
        sources={key: entry["source"] for key, entry in {**kernels, **parallel}.items()},
        profile_hash=profile_hash(path),
        parallel={key: entry["value"] for key, entry in parallel.items()},
    )


def as_stated(stack: Stack, layout: ParallelPlan) -> Stack:
    """The stack with what a layout states otherwise of how exchanges overlap.

    Raises ConfigError where the stack has no such choice.
    """
    said = {name: getattr(layout, name) for name in _OVERLAPS}
    stated = {name: value for name, value in said.items() if value is not None}
    for name in stated:
        if name not in stack.parallel:
            raise ConfigError(f"{name}: got stack {stack.name}; rule: a choice of stack megatron")
    return stack._replace(parallel={**stack.parallel, **stated}) if stated else stack
