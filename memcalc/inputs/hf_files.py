"""Reading config.json files, safetensors headers and the local Hugging Face cache, all offline.

Nothing is executed: no remote code, no pickle. Sizes are limited before a byte is read, and every
way a file can be wrong ends in a one-line ConfigError.
"""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Any, NoReturn

from memcalc.errors import ConfigError

MAX_CONFIG_BYTES = 20 * 10**6
MAX_HEADER_BYTES = 100 * 10**6
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?$")


def load_config(path: str | Path) -> dict[str, Any]:
    """The object in a config.json, in a directory's, or in the one beside a tensor file.

    Raises ConfigError for anything that is not one JSON object of finite numbers.
    Checked by: unit/test_bad_configs.py.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        file = path / "config.json"
        if not file.is_file():
            raise ConfigError(f"config: directory '{path}' has no config.json; rule: one is needed")
        return _parse(file)
    if path.suffix == ".safetensors":
        safetensors_notes(path)  # a broken header is reported before a missing neighbour
        file = path.parent / "config.json"
        if not file.is_file():
            raise ConfigError(
                f"config: no config.json beside '{path}'; rule: a safetensors file holds tensors "
                "only, the architecture is read from the config.json next to it"
            )
        return _parse(file)
    if path.suffix in {".bin", ".pt", ".pth", ".pkl", ".ckpt", ".gguf"}:
        raise ConfigError(
            f"config: got '{path}'; rule: a config.json, a directory with one, or a .safetensors "
            "file (pickled checkpoints are never opened)"
        )
    return _parse(path)


def read_limited(path: Path, limit: int) -> bytes:
    """The bytes of a regular file, refused by its size before reading."""
    try:
        if path.exists() and not path.is_file():
            raise ConfigError(f"config: '{path}' is not a regular file; rule: a file")
        size = path.stat().st_size
        if size > limit:
            raise ConfigError(f"config: '{path}' has {size} bytes; rule: at most {limit}")
        data = path.read_bytes()
    except ConfigError:
        raise
    except OSError as error:
        raise ConfigError(f"config: cannot read '{path}': {error.strerror or error}") from None
    except ValueError:  # a NUL inside the name
        raise ConfigError(f"config: got {str(path)!r}; rule: a file name") from None
    if not data.strip():
        raise ConfigError(f"config: '{path}' is empty; rule: one JSON object")
    return data


def _parse(path: Path) -> dict[str, Any]:
    return parse_json_object(read_limited(path, MAX_CONFIG_BYTES), str(path))


def parse_json_object(data: bytes, what: str) -> dict[str, Any]:
    """One JSON object of finite numbers, nested no deeper than the parser can follow."""

    def refuse(text: str) -> NoReturn:
        raise ConfigError(f"config: '{what}' holds {text[:40]}; rule: finite numbers only")

    def finite(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            refuse(text)
        return value

    try:
        value = json.loads(data.decode("utf-8-sig"), parse_constant=refuse, parse_float=finite)
    except ConfigError:
        raise
    except UnicodeDecodeError:
        raise ConfigError(f"config: '{what}' is not UTF-8 text; rule: JSON in UTF-8") from None
    except RecursionError:
        raise ConfigError(f"config: '{what}' is nested too deeply; rule: a flat object") from None
    except ValueError as error:  # JSONDecodeError, or an integer of thousands of digits
        reason = str(error).split("\n")[0].split(";")[0]
        raise ConfigError(f"config: '{what}' is not valid JSON ({reason})") from None
    if not isinstance(value, dict):
        kind = {list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
        got = kind.get(type(value), "a number")
        raise ConfigError(f"config: '{what}' holds {got}; rule: a JSON object")
    return value


def safetensors_notes(path: Path) -> tuple[str, ...]:
    """What the header of a safetensors file says: tensors, bytes and dtypes, as one note.

    Layout: 8 bytes little-endian header length, then JSON {tensor: {dtype, shape, data_offsets}}.
    Source: the safetensors format description. Checked by: unit/test_bad_configs.py.
    """
    header = parse_json_object(_header(path), f"{path} header")
    count, by_dtype = 0, dict[str, int]()
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
        if (
            not isinstance(offsets, list)
            or len(offsets) != 2
            or not all(type(n) is int for n in offsets)
            or not isinstance(entry.get("dtype"), str)
            or not 0 <= offsets[0] <= offsets[1]
        ):
            raise ConfigError(f"safetensors: '{path}' has a malformed entry {name[:60]!r}")
        count += 1
        by_dtype[entry["dtype"]] = by_dtype.get(entry["dtype"], 0) + offsets[1] - offsets[0]
    parts = ", ".join(f"{n} bytes of {dtype[:16]}" for dtype, n in sorted(by_dtype.items()))
    shard = " (one shard of several)" if re.search(r"-of-\d+", path.name) else ""
    return (f"{path.name}{shard}: {count} tensors, {parts or '0 bytes'}",)


def _header(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
                raise ConfigError(
                    f"safetensors: '{path}' names a header of {length} bytes in a file of {size}; "
                    f"rule: at most {MAX_HEADER_BYTES} and inside the file"
                )
            return file.read(length)
    except OSError as error:
        raise ConfigError(f"safetensors: cannot read '{path}': {error.strerror}") from None


def hub_cache_dir() -> Path:
    """Where huggingface_hub keeps snapshots: HF_HUB_CACHE, else HF_HOME/hub, else ~/.cache."""
    if cache := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(cache).expanduser()
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(os.environ.get("HF_HOME") or default).expanduser() / "hub"


def cached_config(name: str) -> Path | None:
    """The snapshot's config.json of a Hub id in the local cache; None when it is not there.

    The commit of refs/main is preferred, else the newest snapshot. Checked by: unit/test_models.py.
    """
    if not _HUB_ID.match(name):
        return None
    repo = hub_cache_dir() / ("models--" + name.replace("/", "--"))
    try:
        if not (repo / "snapshots").is_dir():
            return None
        main = repo / "refs" / "main"
        if main.is_file():
            commit = main.read_text(encoding="utf-8").strip()
            pinned = repo / "snapshots" / commit / "config.json"
            if re.fullmatch(r"[0-9a-f]{4,64}", commit) and pinned.is_file():
                return pinned
        found = [p for p in (repo / "snapshots").glob("*/config.json") if p.is_file()]
        return max(found, key=lambda p: (p.stat().st_mtime, str(p)), default=None)
    except (OSError, UnicodeDecodeError):
        return None
