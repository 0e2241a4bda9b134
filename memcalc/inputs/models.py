"""MODEL of the command line: a path, a profile name, alias or Hub id, or the local Hub cache.

Tried in that order; nothing is downloaded. A plain profile name opens one TOML file.
"""

from __future__ import annotations

import dataclasses
import re
from functools import lru_cache
from pathlib import Path

from memcalc.errors import ConfigError
from memcalc.inputs.files import MAX_TOML_BYTES, parse_toml, read_limited, user_path
from memcalc.inputs.hf import load_config, model_from_config
from memcalc.inputs.hf_files import cached_config, hub_cache_dir, safetensors_notes
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.model_toml import model_from_profile
from memcalc.inputs.profiles import (
    find_profile,
    normal_name,
    profile_hash,
    profiles_dir,
    read_toml,
)

#: The address of a model's page, as a browser has it.
_HUB_PAGE = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)")
_FILE_SUFFIXES = {".json", ".toml", ".safetensors", ".bin", ".pt", ".pth", ".gguf"}


def load_model(name_or_path: str) -> ModelConfig:
    """The model that a command line's MODEL names.

    Raises ConfigError: a file error for what looks like a path, else the nearest profile names.
    Checked by: unit/test_models.py.
    """
    if not isinstance(name_or_path, str) or not name_or_path.strip():
        raise ConfigError("model: got nothing; rule: a profile name, a Hub id or a path")
    path = user_path(name_or_path)
    if _is_model_path(path, name_or_path):
        return _from_path(path)
    if name_or_path[0] in "~/." or path.suffix in _FILE_SUFFIXES:
        raise ConfigError(f"model: file '{_short(name_or_path)}' not found; rule: an existing path")
    if found := _HUB_PAGE.match(name_or_path.strip()):
        raise ConfigError(
            f"model: got {_short(name_or_path)!r}; rule: a Hub id; nearest valid: {found[1]}"
        )
    try:
        return _shipped(name_or_path)
    except _UnknownName as error:
        cached = cached_config(name_or_path)
        if cached is not None:
            return model_from_config(load_config(cached), name_or_path)
        if "/" in name_or_path and _exists(path.parent):
            raise ConfigError(
                f"model: file '{_short(name_or_path)}' not found; rule: an existing path"
            ) from None
        raise ConfigError(f"{error}{_from_the_hub(name_or_path)}") from None


def _from_the_hub(name: str) -> str:
    """How the config of a Hub id comes to be there: memcalc itself downloads nothing."""
    if name.count("/") != 1:
        return ""
    if "gguf" in name.lower():  # such a repository has no config
        return "; rule: the id of the model itself; nearest valid: it, with --weights gguf:Q4_K_M"
    return (
        f"; not in {hub_cache_dir()} either; rule: nothing is downloaded; nearest valid: "
        f"`hf download {_short(name)} config.json` first"
    )


class _UnknownName(ConfigError):
    """No profile has this name; the Hub cache may."""


@lru_cache(maxsize=128)
def _shipped(name: str) -> ModelConfig:
    """A shipped profile's model; those files do not change while a process runs."""
    return model_from_profile(read_toml(_profile(name)))


def model_hash(name_or_path: str) -> str | None:
    """Hash of the file a MODEL is read from, profile or config; None where it cannot be told."""
    path = user_path(name_or_path)
    if _is_model_path(path, name_or_path):
        file = path / "config.json" if path.is_dir() else path
        return profile_hash(file) if file.suffix in (".json", ".toml") else None
    try:
        return profile_hash(_profile(name_or_path))
    except ConfigError:
        return None


@lru_cache(maxsize=128)
def _profile(name: str) -> Path:
    """The profile of a name. A Hub id is tried under its last part first, to open one file only."""
    stem = name.rsplit("/", 1)[-1]
    if "/" in name and stem:
        file = profiles_dir() / "models" / f"{normal_name(stem)}.toml"
        aliases = read_toml(file).get("aliases") if _exists(file) else None
        if isinstance(aliases, list) and normal_name(name) in map(normal_name, map(str, aliases)):
            return file
    try:
        return find_profile("models", name)
    except ConfigError as error:
        raise _UnknownName(str(error)) from None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _is_model_path(path: Path, text: str) -> bool:
    """An existing file, or a directory that is a model or is written as a path."""
    if not _exists(path):
        return False
    if path.is_dir():
        return (path / "config.json").is_file() or "/" in text or text[0] in ".~"
    return True


def _from_path(path: Path) -> ModelConfig:
    if path.suffix == ".toml":
        data = read_limited(path, MAX_TOML_BYTES, "model")
        found = parse_toml(data, f"model: '{path}' is not")
        if "name" not in found and ("memcalc" in found or "training" in found):
            raise ConfigError(f"model: got '{path}', a run file; nearest valid: --config {path}")
        return model_from_profile(found)
    config = load_config(path)
    model = model_from_config(config, _path_name(path))
    if path.suffix == ".safetensors":
        return dataclasses.replace(model, notes=(*model.notes, *safetensors_notes(path)))
    return model


def _path_name(path: Path) -> str:
    """A model's name out of its path: the Hub id inside a cache, else the directory or file."""
    for part in path.absolute().parts:
        if part.startswith("models--"):
            return part.removeprefix("models--").replace("--", "/")
    if path.is_dir() or path.name == "config.json" or path.suffix == ".safetensors":
        folder = path.resolve() if path.is_dir() else path.absolute().parent
        return folder.name or "model"
    return path.stem


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."
