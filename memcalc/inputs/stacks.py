"""Stacks: whose training code is estimated, read from profiles/stacks or from a user's own file."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

from memcalc.errors import ConfigError
from memcalc.inputs.files import check_shape, names_toml, stamp, user_path
from memcalc.inputs.model import check_choice
from memcalc.inputs.own_stack import own_stack
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.profiles import find_profile, profile_hash, profile_names, read_toml

#: Entries of a stack's `[parallel]` that a layout may state otherwise.
_OVERLAPS: Final = ("overlap_grad_reduce", "overlap_param_gather")
#: Entries that `--set stack.NAME=` may state otherwise: sizes in elements, numbers of buffers, switches.
SETTABLE: Final[Mapping[str, type]] = {
    "reduce_bucket_size": int, "allgather_bucket_size": int, "sub_group_size": int,
    "stage3_prefetch_bucket_size": int, "stage3_param_persistence_threshold": int,
    "stage3_max_live_parameters": int, "stage3_max_reuse_distance": int, "overlap_comm": bool,
    "offload_optimizer_buffer_count": int,
    "offload_param_buffer_count": int, "offload_param_buffer_size": int,
    "offload_param_max_in_cpu": int, "adds_in_place": bool,
}  # fmt: skip
#: How such an entry is named among the overrides of kernels.
PREFIX: Final = "stack."
#: Those that may be 0, as in DeepSpeed's own checks (runtime/zero/config.py: ge=0).
_MAY_BE_0: Final = (
    "stage3_param_persistence_threshold", "stage3_max_live_parameters",
    "stage3_max_reuse_distance", "sub_group_size",
)  # fmt: skip
_MOST_ELEMENTS: Final = 10**15


_FILE: Final = {
    "name!": str, "description": str, "verified_against": str, "kernels": dict, "parallel": dict,
}  # fmt: skip


class Stack(NamedTuple):
    """A stack's choices (`norm`, `loss`, `attention`, `family_code`), each with its source.

    name: the shipped stack whose rules hold; title: what the user called it, a path where it is a file.
    parallel: how it divides a model and its states: buckets, buffers, dtypes, what is on by default.
    """

    name: str
    title: str
    description: str
    verified_against: str
    choices: Mapping[str, Any]
    sources: Mapping[str, str]
    profile_hash: str
    parallel: Mapping[str, Any] = {}  # noqa: RUF012  # never changed


def check_stack(name: str) -> None:
    """Raise ConfigError unless this is a shipped stack, naming the nearest, or a path ending in .toml."""
    if not names_toml(name):
        check_choice("stack", name, stack_names())


def base_of(name: str) -> str:
    """The shipped stack whose rules hold for a stack. Checked by: unit/test_own_stack.py."""
    return load_stack(name).name if names_toml(name) else name


def load_stack(name: str) -> Stack:
    """The stack of this name, or of a file `my.toml`; ConfigError names the nearest for an unknown one."""
    if names_toml(name):
        path = user_path(name)
        return _own(path, *stamp(path))
    return _shipped(name)


@lru_cache(maxsize=1)
def stack_names() -> tuple[str, ...]:
    """The shipped stacks, sorted; the folder is read once."""
    return tuple(profile_names("stacks"))


@lru_cache(maxsize=16)
def _own(path: Path, changed_ns: int, size: int) -> Stack:
    """A user's stack, kept until its file changes."""
    raw = own_stack(path)
    stack = _made(raw, raw["base"], path)
    for name in SETTABLE:
        if name in stack.parallel:
            _check_choice(f"{path.name}: parallel.{name}", name, stack.parallel[name])
    return stack


@lru_cache(maxsize=16)
def _shipped(name: str) -> Stack:
    """A shipped profile's stack; those files do not change while a process runs."""
    path = find_profile("stacks", name)
    raw = read_toml(path)
    check_shape(raw, _FILE, path.name)
    for table in ("kernels", "parallel"):
        for key, entry in raw.get(table, {}).items():
            if not isinstance(entry, dict) or {"value", "source"} - entry.keys():
                rule = "{ value = ..., source = ... }"
                raise ConfigError(f"{path.name}: {table}.{key}: rule: {rule}")
            check_shape(entry["source"], str, f"{path.name}: {table}.{key}.source")
    return _made(raw, raw["name"], path)


def _made(raw: Mapping[str, Any], name: str, path: Path) -> Stack:
    kernels, parallel = raw.get("kernels", {}), raw.get("parallel", {})
    return Stack(
        name=name,
        title=raw["name"],
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


def with_choices(stack: Stack, overrides: Mapping[str, Any]) -> tuple[Stack, dict[str, Any]]:
    """The stack with the entries that overrides state as `stack.NAME`, and the other overrides.

    Raises ConfigError where the stack has no such entry, or for a value out of range.
    Checked by: unit/test_interop_stack.py.
    """
    stated = {k.removeprefix(PREFIX): v for k, v in overrides.items() if k.startswith(PREFIX)}
    if not stated:
        return stack, dict(overrides)
    known = [name for name in SETTABLE if name in stack.parallel]
    for name, value in stated.items():
        if name not in known:
            listing = ", ".join(known) or f"none of stack {stack.name}"
            raise ConfigError(f"--set stack.{name}: got stack {stack.name}; valid: {listing}")
        _check_choice(f"--set stack.{name}", name, value)
    rest = {k: v for k, v in overrides.items() if not k.startswith(PREFIX)}
    return stack._replace(parallel={**stack.parallel, **stated}), rest


def _check_choice(where: str, name: str, value: object) -> None:
    """Raise ConfigError unless a value is of its entry's type and range."""
    if SETTABLE[name] is bool:
        if not isinstance(value, bool):
            raise ConfigError(f"{where}: got {value!r}; rule: true or false")
        return
    least = 0 if name in _MAY_BE_0 else 1
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{where}: got {value!r}; rule: a whole number >= {least}")
    if not least <= value <= _MOST_ELEMENTS:
        raise ConfigError(f"{where}: got {value}; rule: {least} to 10^15")
