"""Serving engines: how one runs a model, read from profiles/engines.

stack: whose layers run. caches: the kinds of cache it has, its own first. The values have a source each.
Checked by: unit/test_serving_setup.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple

from memcalc.errors import ConfigError
from memcalc.inputs.files import check_shape
from memcalc.inputs.profiles import find_profile, profile_hash, read_toml

ENGINES: Final = ("transformers", "vllm", "llama.cpp")
_NEEDED: Final = (
    "prefill_tokens", "cuda_graphs", "workspaces", "logit_rows", "launch_s", "band_low", "band_high",
)  # fmt: skip


_FILE: Final = {
    "name!": str, "description!": str, "stack!": str, "verified_against!": str, "caches!": [str],
    "values": dict,
}  # fmt: skip


class Engine(NamedTuple):
    """A serving engine. values: figures and switches; sources: where each is from.

    prefill_tokens: of one forward pass at most, 0 for any number. logit_rows: rows of logits that its
    largest pass makes, 0 for one a sequence. launch_s: seconds until a kernel is reached from Python.
    band_low, band_high: measured over predicted seconds of a token, the ends of its band.
    """

    name: str
    description: str
    stack: str
    caches: tuple[str, ...]
    verified_against: str
    values: Mapping[str, Any]
    sources: Mapping[str, str]
    profile_hash: str


@lru_cache(maxsize=8)
def load_engine(name: str) -> Engine:
    """The engine of this name; ConfigError names the nearest for an unknown one."""
    path = find_profile("engines", name)
    raw = read_toml(path)
    check_shape(raw, _FILE, path.name)
    entries = raw.get("values", {})
    for key, entry in entries.items():
        if not isinstance(entry, dict) or {"value", "source"} - entry.keys():
            raise ConfigError(f"{path.name}: {key}: rule: {{ value = ..., source = ... }}")
        check_shape(entry["value"], (int, float, bool, str, list), f"{path.name}: {key}")
        check_shape(entry["source"], str, f"{path.name}: {key}.source")
    missing = [key for key in _NEEDED if key not in entries]
    if missing:
        raise ConfigError(f"{path.name}: got no {missing[0]}; rule: {', '.join(_NEEDED)}")
    return Engine(
        name=raw["name"],
        description=raw["description"],
        stack=raw["stack"],
        caches=tuple(raw["caches"]),
        verified_against=raw["verified_against"],
        values={key: entry["value"] for key, entry in entries.items()},
        sources={key: entry["source"] for key, entry in entries.items()},
        profile_hash=profile_hash(path),
    )
