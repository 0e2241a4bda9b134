"""What fuzzing starts from: valid files of every kind, small ones made smaller so that a case is fast."""

from __future__ import annotations

import contextlib
import io
import json
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from memcalc.__main__ import main

ROOT = Path(__file__).parents[2]
PROFILES = ROOT / "profiles"
DATA = Path(__file__).with_name("data")
#: A decoder that takes a few milliseconds.
TINY: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 160,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}  # fmt: skip
_DEPTHS = ("num_hidden_layers", "n_layer", "num_layers", "num_decoder_layers")


def load(kind: str, name: str) -> dict[str, Any]:
    """A shipped profile."""
    return tomllib.loads((PROFILES / kind / f"{name}.toml").read_text("utf-8"))


def _shallow(table: dict[str, Any]) -> dict[str, Any]:
    """A model with three layers at most."""
    found = dict(table)
    for key in _DEPTHS:
        if isinstance(found.get(key), int):
            found[key] = min(found[key], 3)
    for key in ("layer_types", "sparse_layers"):
        if isinstance(found.get(key), list):
            found[key] = found[key][:3]
    return found


@cache
def configs() -> tuple[dict[str, Any], ...]:
    """A config.json of every family."""
    found: dict[str, dict[str, Any]] = {"tiny": TINY}
    for path in sorted((PROFILES / "models").glob("*.toml")):
        config = tomllib.loads(path.read_text("utf-8")).get("config")
        if config is not None:
            found.setdefault(config["model_type"], _shallow(config))
    return tuple(found.values())


@cache
def models() -> tuple[dict[str, Any], ...]:
    """Model profiles, of both kinds."""
    names = (
        "gpt2",
        "llama-3.2-1b",
        "gpt-oss-20b",
        "deepseek-v2-lite",
        "chinchilla-70b",
        "gpt-3-175b",
    )
    found = []
    for name in names:
        profile = load("models", name)
        for table in ("config", "model"):
            if table in profile:
                profile[table] = _shallow(profile[table])
        found.append(profile)
    return tuple(found)


@cache
def profiles(kind: str, *names: str) -> tuple[dict[str, Any], ...]:
    """Shipped profiles of a kind."""
    return tuple(load(kind, name) for name in names)


@cache
def measured_calibration() -> dict[str, Any]:
    """A calibration that `memcalc calibrate` wrote on a CPU, its points cut to one of each kind."""
    return tomllib.loads((DATA / "calibration.toml").read_text("utf-8"))


@cache
def records() -> tuple[dict[str, Any], ...]:
    """A record of `verify` and one of `measure`, of one tiny run each."""
    lines = (DATA / "records.jsonl").read_text("utf-8").splitlines()
    return tuple(json.loads(line) for line in lines)


@cache
def estimates() -> tuple[dict[str, Any], ...]:
    """Results of `estimate --json`, with and without a GPU."""
    found = []
    for words in (
        ["gpt2", "--layers", "2"],
        ["gpt2", "--layers", "2", "--gpu", "h100-80gb", "--seq", "64"],
    ):
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
            assert main(["estimate", *words, "--json"]) in (0, 3)
        found.append(json.loads(out.getvalue()))
    return tuple(found)


@cache
def rows() -> list[list[str]]:
    """The header and forty rows of the published runs, spread over all."""
    import csv

    text = (ROOT / "benchmarks" / "published" / "runs.csv").read_text("utf-8")
    table = list(csv.reader(io.StringIO(text)))
    return [table[0], *table[1 :: max(1, len(table) // 40)]]


@cache
def settings() -> tuple[tuple[str, bytes], ...]:
    """Settings files of other tools: name and text."""
    folder = ROOT / "tests" / "data" / "interop"
    return tuple(
        (path.name, path.read_bytes()) for path in sorted(folder.iterdir()) if path.suffix != ".md"
    )


def toml(tree: Mapping[str, Any]) -> str:
    """TOML of whatever it is, as inline values below the first level; what TOML has not is left out."""
    lines = [
        f"{json.dumps(key)} = {_plain(item)}" for key, item in tree.items() if item is not None
    ]
    return "\n".join(lines).encode("utf-8", "replace").decode() + "\n"


def _plain(item: Any) -> str:
    if isinstance(item, dict):
        inner = (f"{json.dumps(k)} = {_plain(v)}" for k, v in item.items() if v is not None)
        return "{" + ", ".join(inner) + "}"
    if isinstance(item, list):
        return "[" + ", ".join(_plain(one) for one in item if one is not None) + "]"
    if isinstance(item, bool):
        return str(item).lower()
    if isinstance(item, (int, float)):
        return repr(item)
    return json.dumps(str(item))
