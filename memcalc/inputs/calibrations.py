"""Calibration profiles as TOML files: their names, where they lie, and what a valid one is.

The user's own are in `calibrations` of the config directory, the package's among its profiles; the
user's wins where both have a name. A file is checked when it is read, because it may have been
written by hand or by another version: one line says what is wrong with it. No torch.
Checked by: unit/test_calibrations.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from memcalc.errors import ConfigError, unknown
from memcalc.inputs.files import names_toml, parse_toml, read_limited, user_path
from memcalc.inputs.profiles import check_name, normal_name, profiles_dir
from memcalc.inputs.toml_text import to_toml
from memcalc.userdirs import config_dir

#: Version of the layout; files with another are refused.
SCHEMA = 1
#: Kinds of files among the calibrations: measured on a device, or constants of an architecture.
MEASURED, DEFAULT = "calibration", "default-calibration"
#: How the names of those files begin.
DEFAULT_PREFIX = "default-"
MAX_BYTES = 8 << 20
#: No figure of a device is near it; NaN and infinities are not below it.
_LARGEST = 1e30
_TEXTS = ("name", "memcalc", "torch", "date")
_NUMBERS = ("median_s", "p10_s", "p90_s")
#: Figures of the summary's rows that times are computed from, beside those in seconds and rates.
_FIGURES = frozenset({
    "seconds", "step", "block", "rest", "prompt", "head_dim", "heads", "kv_heads", "ranks", "rows",
    "dgrad", "wgrad", "mean_relative_error", "half_seq_len", "seq_len", "s_per_parameter", "s_per_tensor",
})  # fmt: skip
#: Those that are differences of two measurements, which noise may turn below 0.
_DIFFERENCES = frozenset({"block", "rest", "block_s", "rest_s"})
#: Kinds of points, and the fields each must have beside its times.
KINDS: Mapping[str, tuple[str, ...]] = {
    "gemm": ("m", "n", "k", "dtype", "part", "layout", "flops", "bytes"),
    "gemm_square": ("m", "n", "k", "dtype", "flops"),
    "gemm_sustained": ("m", "n", "k", "dtype", "flops", "first_s", "last_s"),
    "fixed": ("what", "how"),
    "attention": ("kernel", "direction", "seq_len", "head_dim", "heads", "kv_heads", "flops"),
    "bandwidth": ("what", "tensor_bytes", "bytes"),
    "norm": ("what", "direction", "dtype", "bytes"),
    "elementwise": ("what", "kernels", "bytes"),
    "kernel": ("what", "dtype", "bytes"),
    "loss": ("what", "with_head", "tokens", "vocab_size"),
    "optimizer": ("what", "dtype", "parameters", "bytes"),
    "embedding_backward": ("tokens", "vocab_size", "hidden_size", "bytes"),
    "collective": ("what", "ranks", "backend", "message_bytes", "bus_bytes"),
    "launch": ("precision", "layers", "kernels"),
    "launch_decode": ("precision", "layers", "kernels"),
    "generation": ("model", "precision", "attention", "prompt_s", "tokens"),
    "few_rows": ("name", "dtype", "rows", "n", "k", "flops", "bytes"),
    "decode_attention": ("dtype", "b", "a", "k", "keys", "d", "flops", "bytes"),
    "step": ("model", "layers", "seq_len", "micro_batch_size", "precision", "phases"),
}


class Entry(NamedTuple):
    """A calibration file: its name, its path, and whether it is the user's or the package's."""

    name: str
    path: Path
    origin: str


def user_folder() -> Path:
    """Where `memcalc calibrate` writes."""
    return config_dir() / "calibrations"


def package_folder() -> Path:
    """Calibrations shipped with the package; the folder need not exist."""
    return profiles_dir() / "calibrations"


def entries() -> list[Entry]:
    """All calibration files by name; the user's hides the package's of the same name."""
    found: dict[str, Entry] = {}
    for folder, origin in ((package_folder(), "package"), (user_folder(), "user")):
        try:
            paths = sorted(path for path in folder.glob("*.toml") if path.is_file())
        except OSError:
            continue
        found |= {path.stem: Entry(path.stem, path, origin) for path in paths}
    return [found[name] for name in sorted(found)]


def measured_entries() -> list[Entry]:
    """Those that `memcalc calibrate` made: the names of the others begin with `default-`."""
    return [entry for entry in entries() if not entry.name.startswith(DEFAULT_PREFIX)]


def find(name: str) -> Path:
    """The file of a calibration: its name in any usual spelling, or a path ending in .toml.

    Raises ConfigError naming the nearest.
    """
    if names_toml(name):
        return user_path(name)
    check_name("calibration", name)
    known = entries()
    for entry in known:
        if entry.name == name or normal_name(entry.name) == normal_name(name):
            return entry.path
    if not known:
        raise ConfigError(f"calibration: got {name!r}; rule: `memcalc calibrate` makes one first")
    raise unknown("calibration", name, [entry.name for entry in known])


def read(path: Path) -> dict[str, Any]:
    """The measured profile in a file. Raises ConfigError, in one line, unless it is a valid one."""
    found = _parsed(path)
    check(found, f"'{path}'")
    return found


def is_default(path: Path) -> bool:
    """Whether a file holds constants of an architecture (inputs/rates.py), not a measured profile."""
    return _parsed(path).get("kind") == DEFAULT


def _parsed(path: Path) -> dict[str, Any]:
    data = read_limited(path, MAX_BYTES, "calibration")
    return parse_toml(data, f"calibration: '{path}' is not")


def to_text(profile: Mapping[str, Any]) -> str:
    """The TOML of a profile; `read` gives the same values back."""
    check(profile, "this profile")
    return f"# Measured by memcalc calibrate; base units: s, bytes, FLOPs.\n{to_toml(profile)}"


def ceiling(profile: Mapping[str, Any]) -> float | None:
    """FLOPs/s of the square product in bursts, the first dtype's; None where it was not measured."""
    for row in profile["summary"].get("gemm_ceiling", ()):
        value = row.get("flops_per_s")
        if row.get("how") == "burst" and _is_positive(value):
            return float(value)
    return None


def profile_name(profile: Mapping[str, Any]) -> str:
    """Device and torch release in file spelling: nvidia-h200-torch-2.11.0, amd-epyc-2t-torch-2.13.0.

    A CPU's has the number of threads, for its figures hold for that number only.
    """
    device = profile["device"]
    words = [device["name"], *([f"{device['cpu_threads']}t"] if device["type"] == "cpu" else [])]
    words += ["torch", profile["torch"].partition("+")[0]]
    return re.sub(r"[^a-z0-9.]+", "-", " ".join(words).lower()).strip("-.")


def check(profile: Mapping[str, Any], where: str) -> None:
    """Raise ConfigError unless this is a calibration profile of this version."""
    schema = profile.get("schema")
    if profile.get("kind") != MEASURED or type(schema) is not int:
        raise ConfigError(f"calibration: {where} is none; rule: a file of `memcalc calibrate`")
    if schema != SCHEMA:
        raise ConfigError(
            f"calibration: {where} has schema {schema}; rule: {SCHEMA}, made by this version"
        )
    for key in _TEXTS:
        if not isinstance(profile.get(key), str) or not profile[key].strip():
            raise _wrong(where, key, profile.get(key), "a text")
    device = profile.get("device")
    if not isinstance(device, Mapping):
        raise _wrong(where, "device", device, "a table")
    for key in ("name", "type"):
        if not isinstance(device.get(key), str):
            raise _wrong(where, f"device.{key}", device.get(key), "a text")
    if not isinstance(profile.get("summary"), Mapping):
        raise _wrong(where, "summary", profile.get("summary"), "a table")
    _check_plain(profile, where, "")
    _check_lists(profile, where)


def sound(profile: dict[str, Any]) -> dict[str, Any]:
    """The profile without rows of the summary that noise made impossible; `skipped` tells them.

    So that minutes of measuring are not lost to one fit. Checked by: unit/test_calibrations.py.
    """
    for name, rows in profile["summary"].items():
        for row in list(rows):
            try:
                _check_row(row, "this run", f"summary.{name}")
            except ConfigError as error:
                rows.remove(row)
                profile["skipped"].append({"point": f"fit of {name}", "reason": str(error)})
    profile["summary"] = {name: rows for name, rows in profile["summary"].items() if rows}
    return profile


def _check_lists(profile: Mapping[str, Any], where: str) -> None:
    for name, rows in profile["summary"].items():
        _tables(rows, where, f"summary.{name}")
        for number, row in enumerate(rows):
            if type(row.get("n")) is not int or row["n"] < 1:
                raise _wrong(where, f"summary.{name}[{number}].n", row.get("n"), "a count")
            _check_row(row, where, f"summary.{name}[{number}]")
    for number, point in enumerate(_tables(profile.get("points"), where, "points")):
        _check_point(point, where, f"points[{number}]")
    for number, row in enumerate(_tables(profile.get("skipped"), where, "skipped")):
        if not all(isinstance(row.get(key), str) for key in ("point", "reason")):
            raise _wrong(where, f"skipped[{number}]", row, "point and reason")


def _check_row(row: Mapping[str, Any], where: str, name: str) -> None:
    """Figures of a row of the summary are numbers from 0, rates above it, or lists of such."""
    for key, value in row.items():
        rate, least = "_per_s" in key, -_LARGEST if key in _DIFFERENCES else 0.0
        for one in value if isinstance(value, list) else (value,):
            if isinstance(one, Mapping):
                _check_row(one, where, f"{name}.{key}")
            elif not (rate or key.endswith("_s") or key in _FIGURES):
                continue
            elif type(one) not in (int, float) or one < least or (rate and one == 0):
                rule = "a number above 0" if rate else "a number from 0"
                raise _wrong(where, f"{name}.{key}", one, rule)


def _tables(value: Any, where: str, name: str) -> list[Any]:
    if not isinstance(value, list) or not all(isinstance(row, Mapping) for row in value):
        raise _wrong(where, name, value, "a list of tables")
    return value


def _check_point(point: Mapping[str, Any], where: str, name: str) -> None:
    kind = point.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise _wrong(where, f"{name}.kind", kind, f"one of {', '.join(KINDS)}")
    for key in _NUMBERS:
        if not _is_positive(point.get(key)):
            raise _wrong(where, f"{name}.{key}", point.get(key), "seconds above 0")
    for key in KINDS[kind]:
        if key not in point:
            raise _wrong(where, f"{name}.{key}", None, f"given for kind {kind}")
    for key, value in point.items():
        counted = key in KINDS[kind] and isinstance(value, int | float)
        if counted and value < 0:
            raise _wrong(where, f"{name}.{key}", value, "not negative")


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and value > 0


def _check_plain(value: Any, where: str, name: str) -> None:
    """Texts, truth values and numbers a float can hold; no dates, which TOML has and JSON has not."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_plain(item, where, f"{name}.{key}".lstrip("."))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            _check_plain(item, where, f"{name}[{number}]")
    elif not isinstance(value, str | int | float) or (
        not isinstance(value, str) and not abs(value) < _LARGEST
    ):
        raise _wrong(where, name, value, "a text, a finite number, true or false")


def _wrong(where: str, name: str, got: Any, rule: str) -> ConfigError:
    shown = "nothing" if got is None else repr(got)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return ConfigError(f"calibration: {where}: {name}: got {shown}; rule: {rule}")
