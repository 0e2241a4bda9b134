"""--set FIELD=VALUE: the last word on one field of the training setup, kernels, stack or model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from memcalc.errors import ConfigError, nearest, unknown
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.stacks import PREFIX, SETTABLE
from memcalc.inputs.training import TrainingSetup
from memcalc.units import parse_count

_TABLES = ("training", "kernels", "stack", "model")
_WORDS = {"true": True, "false": False}


@dataclass(slots=True)
class Overrides:
    """What --set changes, by table."""

    training: dict[str, Any] = field(default_factory=dict)
    kernels: dict[str, Any] = field(default_factory=dict)  # entries of a stack as stack.NAME
    model: dict[str, str] = field(default_factory=dict)

    def apply_to_model(self, config: ModelConfig) -> ModelConfig:
        """The model with its fields replaced, all at once; `model.moe.*`, `model.mla.*` reach inside."""
        known = {f.name: str(f.type) for f in fields(config)}
        changed: dict[str, Any] = {}
        inside: dict[str, dict[str, Any]] = {}
        for path, text in self.model.items():
            outer, _, inner = path.partition(".")
            if outer not in known:
                raise _no_field("model", outer, known)
            if not inner:
                changed[outer] = _typed(f"model.{path}", known[outer], text)
                continue
            part = getattr(config, outer)
            if outer not in ("moe", "mla") or part is None:
                raise ConfigError(f"--set: got model.{path}; rule: {config.name} has no {outer}.*")
            types = {f.name: str(f.type) for f in fields(part)}
            if inner not in types:
                raise _no_field(f"model.{outer}", inner, types)
            inside.setdefault(outer, {})[inner] = _typed(f"model.{path}", types[inner], text)
        changed |= {outer: replace(getattr(config, outer), **own) for outer, own in inside.items()}
        return replace(config, **changed)


def parse_overrides(assignments: list[str]) -> Overrides:
    """Read `table.field=value` words. Raises ConfigError; checked by cli/test_options.py."""
    found = Overrides()
    setup_types = {f.name: str(f.type) for f in fields(TrainingSetup)}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        table, dot, name = path.strip().partition(".")
        if not equals or not dot or not name:
            raise ConfigError(
                f"--set: got {assignment!r}; rule: field=value, as training.loss_chunks=4"
            )
        if table not in _TABLES:
            raise unknown("--set table", table, _TABLES)
        if table == "training":
            if name not in setup_types:
                raise _no_field("training", name, setup_types)
            found.training[name] = _typed(path, setup_types[name], text.strip())
        elif table == "kernels":
            found.kernels[name] = _WORDS.get(text.strip().lower(), text.strip())
        elif table == "stack":
            found.kernels[PREFIX + name] = _of_stack(name, text.strip())
        else:
            found.model[name] = text.strip()
    return found


def _of_stack(name: str, text: str) -> Any:
    """An entry of the stack's `[parallel]` table from text; large sizes may be written as 5e8."""
    if name not in SETTABLE:
        raise _no_field("stack", name, SETTABLE)
    if SETTABLE[name] is bool:
        return _typed(f"stack.{name}", "bool", text)
    value = number(text, f"--set stack.{name}")
    if value != int(value):
        raise ConfigError(f"--set stack.{name}: got {text!r}; rule: a whole number")
    return int(value)


def _no_field(table: str, name: str, valid: Iterable[str]) -> ConfigError:
    names = list(valid)
    close = nearest(name, names)
    said = f"nearest: {', '.join(close)}" if close else f"valid: {', '.join(names)}"
    return ConfigError(f"--set {table}: got {name!r}, not known; {said}")


def _typed(path: str, annotation: str, text: str) -> Any:
    """A field's value from text, by the field's annotation."""
    if text.lower() == "none" and "None" in annotation:
        return None
    if annotation.startswith("bool"):
        if text.lower() not in _WORDS:
            raise ConfigError(f"--set {path}: got {text!r}; rule: true or false")
        return _WORDS[text.lower()]
    if annotation.startswith("int"):
        return parse_count(text, f"--set {path}")
    if annotation.startswith("float"):
        return number(text, f"--set {path}")
    if annotation.startswith("tuple"):
        parts = [part.strip() for part in text.split(",") if part.strip()]
        return tuple(parse_count(p, path) if p.isdecimal() else p for p in parts)
    if "PeftSetup" in annotation:
        raise ConfigError(
            f"--set {path}: got {text!r}; rule: --peft and --lora-rank, --lora-targets"
        )
    if "Config" in annotation:
        raise ConfigError(f"--set {path}: got {text!r}; rule: set one field inside, as {path}.NAME")
    return text


def number(text: str, what: str) -> float:
    """A finite number from text."""
    try:
        value = float(text)
    except ValueError:
        raise ConfigError(f"{what}: got {text!r}; rule: a number{_bare(text)}") from None
    if not abs(value) < float("inf"):
        raise ConfigError(f"{what}: got {text!r}; rule: a finite number")
    return value


def _bare(text: str) -> str:
    """What `$2.50`, `40%`, `1,000` or `100k` is as a number; nothing for what is none."""
    found = re.fullmatch(r"\$?\s*(\d[\d,]*(?:\.\d+)?)\s*([kMBT%]?)", text.strip()[:40])
    if found is None:
        return ""
    factor = {"k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}.get(found[2], 1)
    return f"; nearest valid: {float(found[1].replace(',', '')) * factor:.12g}"


def plain(overrides: Overrides) -> Mapping[str, Any]:
    """What was set, as `table.field: value`."""
    named = {
        f"{table}.{name}": value
        for table in ("training", "kernels", "model")
        for name, value in getattr(overrides, table).items()
    }
    return {name.replace(f"kernels.{PREFIX}", PREFIX): value for name, value in named.items()}
