"""memcalc show [KIND] NAME: every figure of one model, GPU, cluster, stack or calibration, sourced."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memcalc.cli.deliver import deliver
from memcalc.cli.parse import Arguments, check_positionals
from memcalc.errors import ConfigError, unknown
from memcalc.inputs.files import names_toml, user_path

if TYPE_CHECKING:
    from memcalc.output.console import Page

#: Keys that only the file of a stack has.
_STACK_TABLES = ("base", "kernels", "parallel")
KINDS = ("models", "gpus", "stacks", "clusters", "weights", "engines", "calibrations")
#: What one entry of a kind is called, where it is not the kind without its s.
_WORDS = {"weights": "weight format"}


def run(arguments: Arguments) -> int:
    """Write all figures of one profile; always 0."""
    check_positionals(arguments)
    *kinds, name = arguments.positionals
    kind, plain = _find(name, (_kind(kinds[0]),) if kinds else KINDS)
    plain = {"schema": 1, "kind": kind, **plain} | {"kind": kind}

    def page(sheet: Page) -> None:
        if kind == "calibrations" and "points" in plain:
            from memcalc.output.calibrate_text import calibration_page

            calibration_page(sheet, plain, plain["file"])
            return
        if kind == "calibrations":
            from memcalc.output.constants_text import constants_page

            constants_page(sheet, plain)
            return
        sheet.line(f"{_WORDS.get(kind, kind[:-1])} {plain['name']}", "bold")
        rows = list(_rows({k: v for k, v in plain.items() if k not in ("schema", "kind", "name")}))
        sheet.table(("figure", "value", "source"), rows)
        if any("not verified" in source for _, _, source in rows):
            sheet.line("not verified: without a second source")

    deliver(arguments, lambda: plain, page, f"{kind} {plain['name']}")
    return 0


def _kind(word: str) -> str:
    lowered = word.lower()
    found = lowered if lowered.endswith("s") else f"{lowered}s"
    if found not in KINDS:
        raise unknown("show", word, KINDS)
    return found


def _find(name: str, kinds: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    readers = {
        "models": _model, "gpus": _gpu, "stacks": _stack, "clusters": _cluster,
        "weights": _weights, "engines": _engine, "calibrations": _calibration,
    }  # fmt: skip
    errors: list[ConfigError] = []
    stack_first = _is_stack_file(name)
    for kind in sorted(
        kinds, key=lambda kind: not (_is_profile(kind, name) or (stack_first and kind == "stacks"))
    ):
        try:
            return kind, readers[kind](name)
        except ConfigError as error:
            errors.append(error)
    if len(errors) == 1 or _is_path(name):
        raise errors[0]
    from memcalc.inputs.calibrations import entries

    calibrations = [entry.name for entry in entries()]
    if name in calibrations:  # it is there and cannot be read
        raise errors[-1]
    known = [label for kind in kinds if kind != "calibrations" for label in _names(kind)]
    raise unknown("show", name, [*known, *calibrations])


def _names(kind: str) -> list[str]:
    from memcalc.inputs.profiles import profile_names
    from memcalc.inputs.weights import weight_names

    return weight_names() if kind == "weights" else profile_names(kind)


def _is_profile(kind: str, name: str) -> bool:
    """Whether a shipped profile has this very name: it goes before another kind's alias."""
    from memcalc.inputs import profiles

    return kind in profiles.KINDS and name in _names(kind)


def _is_stack_file(name: str) -> bool:
    """Whether a path leads to a stack of the user's own: it has a table no other kind has."""
    from memcalc.inputs.profiles import read_toml

    try:
        return names_toml(name) and not read_toml(user_path(name)).keys().isdisjoint(_STACK_TABLES)
    except ConfigError:
        return False


def _is_path(name: str) -> bool:
    try:
        return Path(name).exists() or name[:1] in "./~"
    except (OSError, ValueError):
        return False


def _model(name: str) -> dict[str, Any]:
    from memcalc.inputs.models import load_model
    from memcalc.inputs.profiles import find_profile, profile_hash, read_toml

    config = load_model(name)
    plain: dict[str, Any] = {"name": config.name}
    try:
        path = find_profile("models", name)
    except ConfigError:
        path = None
    if path is not None and not _is_path(name):
        raw = read_toml(path)
        plain |= {
            "aliases": raw.get("aliases", []),
            "parameters": {
                "value": raw.get("parameters"), "source": raw.get("parameters_source", "none"),
            },
            "profile_source": raw.get("source"),
            "profile_hash": profile_hash(path),
        }  # fmt: skip
    return {**plain, "config": asdict(config)}


def _gpu(name: str) -> dict[str, Any]:
    from memcalc.inputs.hardware import context_bytes, cublas_workspace_bytes, load_gpu
    from memcalc.inputs.profiles import find_profile, read_toml

    gpu, notes = load_gpu(name)
    raw = read_toml(user_path(name) if names_toml(name) else find_profile("gpus", gpu.slug))
    context, source, verified = context_bytes(gpu)
    return {
        **raw,
        "name": gpu.name,
        "usable_bytes": {"value": gpu.total_bytes, "source": gpu.total_bytes_source,
                         "verified": gpu.total_bytes_source == "measured"},
        "matmul_workspace_bytes": {"value": cublas_workspace_bytes(gpu),
                                   "source": "PyTorch, CublasHandlePool.cpp", "verified": True},
        "context_bytes": {"value": context, "source": source, "verified": verified},
        "resolved": notes,
        "profile_hash": gpu.profile_hash,
    }  # fmt: skip


def _stack(name: str) -> dict[str, Any]:
    from memcalc.inputs.profiles import find_profile
    from memcalc.inputs.stacks import load_stack

    stack = load_stack(name if names_toml(name) else find_profile("stacks", name).stem)
    base = {"base": stack.name} if names_toml(name) else {}
    return {
        "name": stack.title,
        **base,
        "description": stack.description,
        "verified_against": stack.verified_against,
        "choices": {
            key: {"value": value, "source": stack.sources[key]}
            for key, value in stack.choices.items()
        },
        "parallel": {
            key: {"value": value, "source": stack.sources[key]}
            for key, value in stack.parallel.items()
        },
        "profile_hash": stack.profile_hash,
    }


def _engine(name: str) -> dict[str, Any]:
    from memcalc.inputs.engines import load_engine
    from memcalc.inputs.serving import CACHED_IN

    engine = load_engine(name)
    return {
        "name": engine.name,
        "description": engine.description,
        "verified_against": engine.verified_against,
        "caches": list(engine.caches),
        "cached_in": list(CACHED_IN[engine.name]),
        "values": {
            key: {"value": value, "source": engine.sources[key]}
            for key, value in engine.values.items()
        },
        "profile_hash": engine.profile_hash,
    }


def _cluster(name: str) -> dict[str, Any]:
    from memcalc.inputs.clusters import load_cluster
    from memcalc.inputs.profiles import find_profile, read_toml

    cluster = load_cluster(name)
    raw = read_toml(user_path(name) if names_toml(name) else find_profile("clusters", name))
    return {
        **raw,
        "name": cluster.name,
        "gpu": cluster.gpu,
        "node_network_bytes_per_s": {"value": cluster.node_network_bytes_per_s,
                                     "source": "all network cards of a node"},
        "gpu_network_bytes_per_s": {"value": cluster.gpu_network_bytes_per_s,
                                    "source": "a GPU's share of them"},
        "profile_hash": cluster.profile_hash,
    }  # fmt: skip


def _weights(name: str) -> dict[str, Any]:
    from memcalc.inputs.weights import load_weights

    found = load_weights(name)
    used = {packing for _, packing in found.roles} | {rule.packing for rule in found.rules}
    return {
        "name": found.name,
        "description": found.description,
        "kernel": found.kernel,
        "dtype": found.dtype,
        "roles": dict(found.roles),
        "rules": [f"{' '.join(r.ops)}: {r.packing} ({r.when})" for r in found.rules],
        "packings": {
            packing.name: {
                "value": packing.bits(4096, 4096),
                "source": f"bits of an element of 4096 x 4096: {', '.join(_parts(packing))}",
            }
            for packing in found.packings
            if packing.name in used
        },
        "families": list(found.families),
        "source": found.source,
        "checked": found.verified,
        "profile_hash": found.profile_hash,
    }


def _parts(packing: Any) -> list[str]:
    return [f"{part.name} {part.size} B of {part.block}" for part in packing.parts]


def _calibration(name: str) -> dict[str, Any]:
    from memcalc.inputs.calibrations import find, is_default, read
    from memcalc.inputs.constants import check_constants
    from memcalc.inputs.profiles import read_toml

    path = find(name)
    if not is_default(path):
        return {**read(path), "file": str(path)}
    found = read_toml(path)
    check_constants(found, f"calibration: {path.name}")
    return {**found, "file": str(path)}


def _rows(plain: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """(figure, value, source) of everything in a profile, nested tables by dotted names."""
    for key, value in plain.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and "value" in value:
            marks = [str(value.get("source", ""))]
            if value.get("as_of"):
                marks.append(f"as of {value['as_of']}")
            if value.get("verified") is False:
                marks.append("not verified")
            yield name, _text(value["value"]), "; ".join(mark for mark in marks if mark)
        elif isinstance(value, dict):
            yield from _rows(value, f"{name}.")
        elif value is not None and value not in ([], ()):
            yield name, _text(value), ""


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        words = [str(item) for item in value]
        return ", ".join(words) if len(set(words)) > 1 or len(words) < 4 else (
            f"{len(words)} x {words[0]}")  # fmt: skip
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,g}"
