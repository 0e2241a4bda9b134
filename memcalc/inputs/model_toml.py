"""A model TOML: architecture figures with their source, as keys of a config.json or as fields.

Models that a Hugging Face class expresses carry `[config]`, read by inputs/hf.py like any
config.json; the few that none does carry `[model]`, the fields of ModelConfig themselves.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from memcalc.errors import ConfigError, unknown
from memcalc.inputs.files import shown
from memcalc.inputs.hf import model_from_config
from memcalc.inputs.hf_fields import MAX_LAYERS
from memcalc.inputs.model import MlaConfig, ModelConfig, MoeConfig
from memcalc.inputs.peft import PeftSetup

#: First word of a field's annotation -> the types a TOML value may have; absent: a name.
_TYPES: dict[str, tuple[type, ...]] = {
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
    "MoeConfig": (MoeConfig,),
    "MlaConfig": (MlaConfig,),
    "tuple[str,": (tuple,),
    "tuple[int,": (tuple,),
    "tuple[LayerType,": (tuple,),
    "PeftSetup": (PeftSetup,),
}


def model_from_profile(profile: dict[str, Any]) -> ModelConfig:
    """A model TOML: `name`, then `[config]` (keys of a config.json) or `[model]` (of ModelConfig).

    `nulls` lists config keys whose published value is null, which TOML cannot write; `notes` says
    what of the published model is not priced.
    Checked by: unit/test_model_profiles.py.
    """
    name = profile.get("name")
    if not isinstance(name, str) or not name:
        raise ConfigError(f"name: got {shown(name)}; rule: a model TOML names its model")
    model = _without_notes(profile, name)
    notes = _strings(profile, "notes", name)
    return dataclasses.replace(model, notes=(*notes, *model.notes)) if notes else model


def _without_notes(profile: dict[str, Any], name: str) -> ModelConfig:
    config, fields = profile.get("config"), profile.get("model")
    if isinstance(config, dict) and fields is None:
        nulls = dict.fromkeys(_strings(profile, "nulls", name))
        return model_from_config({**config, **nulls}, name)
    if isinstance(fields, dict) and config is None:
        return _from_fields(name, fields)
    raise ConfigError(f"{name}: rule: a model TOML has one table, [config] or [model]")


def _strings(profile: dict[str, Any], key: str, name: str) -> list[str]:
    found = profile.get(key, [])
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise ConfigError(f"{name}: {key}: got {shown(found)}; rule: a list of strings")
    return found


def _from_fields(name: str, table: dict[str, Any]) -> ModelConfig:
    """ModelConfig from a [model] table; [model.moe] and [model.mla] are its sub-structures."""
    values: dict[str, Any] = {"model_type": "custom", **table, "name": name}
    try:
        if isinstance(values.get("moe"), dict):
            values["moe"] = MoeConfig(**checked_fields(MoeConfig, values["moe"]))
        if isinstance(values.get("mla"), dict):
            values["mla"] = MlaConfig(**checked_fields(MlaConfig, values["mla"]))
        return ModelConfig(**checked_fields(ModelConfig, values))
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None


def checked_fields(kind: type[Any], table: Mapping[str, Any]) -> dict[str, Any]:
    """A table as keyword arguments of a dataclass: known fields, of the declared types, none missing.

    Raises ConfigError naming the field. Checked by: unit/test_malicious.py, unit/test_model_profiles.py.
    """
    declared = {field.name: field for field in dataclasses.fields(kind)}
    missing = [
        field.name
        for field in declared.values()
        if field.default is dataclasses.MISSING and field.name not in table
    ]
    if missing:
        raise ConfigError(f"{missing[0]}: missing; rule: every {kind.__name__} states it")
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in declared:
            raise unknown(f"{kind.__name__} field", key, declared)
        value = tuple(value) if isinstance(value, list) else value
        annotation = str(declared[key].type)
        if value is not None or "None" not in annotation:
            _check_type(key, value, _TYPES.get(annotation.split()[0], (str,)))
        values[key] = value
    _check_layers(values)
    return values


def _check_type(key: str, value: object, types: tuple[type, ...]) -> None:
    is_flag = isinstance(value, bool)
    if not isinstance(value, types) or is_flag != (types == (bool,)):
        names = " or ".join(kind.__name__ for kind in types)
        raise ConfigError(f"{key}: got {shown(value)}; rule: {names.replace('tuple', 'list')}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{key}: got {shown(value)}; rule: a finite number")


def _check_layers(values: dict[str, Any]) -> None:
    """Entries of the per-layer lists, and a number of layers that lists can hold."""
    if values.get("num_hidden_layers", 0) > MAX_LAYERS:
        raise ConfigError(
            f"num_hidden_layers: got {shown(values['num_hidden_layers'])}; "
            f"rule: at most {MAX_LAYERS} layers"
        )
    for name in ("notes", "recompute_modules", "targets", "lora_targets"):
        for entry in values.get(name) or ():
            _check_type(name, entry, (str,))
