"""Reading config.json files, safetensors headers and the local Hugging Face cache, all offline.

Nothing is executed: no remote code, no pickle. Sizes are limited before a byte is read, and every
way a file can be wrong ends in a one-line ConfigError.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from memcalc.errors import ConfigError
from memcalc.inputs.files import parse_json_object, read_limited, user_path

MAX_CONFIG_BYTES = 20 * 10**6
MAX_HEADER_BYTES = 100 * 10**6
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?$")


def load_config(path: str | Path) -> dict[str, Any]:
    """The object in a config.json, in a directory's, or in the one beside a tensor file.

    Raises ConfigError for anything that is not one JSON object of finite numbers.
    Checked by: unit/test_bad_configs.py.
    """
    path = user_path(str(path))
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


def _parse(path: Path) -> dict[str, Any]:
    return parse_json_object(read_limited(path, MAX_CONFIG_BYTES), str(path))


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
