"""Which rates an estimate uses: the one place that says what `--calibration` means.

    default          the constants of the device's architecture
    auto             a calibration measured on this very device, where there is one; else default
    NAME or FILE     that calibration: one of `memcalc calibrate`, or default-<architecture>

Measured on this device: `memcalc calibrate` ran on a GPU whose name means the same profile, at full
sizes. Of several the one of the newest torch release, then of the latest date, is taken. The user's
calibrations hide the package's of the same name. Checked by: unit/test_choose_rates.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from memcalc.errors import ConfigError
from memcalc.inputs.calibrations import find, is_default, measured_entries, read
from memcalc.inputs.files import stamp
from memcalc.inputs.hardware import Gpu, load_gpu
from memcalc.inputs.measured_rates import measured_rates
from memcalc.inputs.rates import DEFAULT, Rates, rates_of

AUTO = "auto"
#: How far a device's memory may be from the profile's: partitions of a GPU carry its name.
_SAME_MEMORY = 0.12


def choose_rates(gpu: Gpu, calibration: str = AUTO) -> tuple[Rates, str]:
    """The rates of a device, and a note on what was taken from elsewhere ("" where nothing was).

    calibration: auto, default, a name of `memcalc list calibrations`, or a path ending in .toml.
    Raises ConfigError when there is none of that name, or the file is no calibration.
    """
    word = calibration.strip()
    if word == DEFAULT:
        return rates_of(gpu), ""
    if word == AUTO:
        found = _measured_on(gpu)
        return (rates_of(gpu), "") if found is None else _measured(gpu, found, *stamp(found))
    path = find(word)
    if _is_default(path, *stamp(path)):
        return rates_of(gpu, str(path)), ""
    return _measured(gpu, path, *stamp(path))


@lru_cache(maxsize=64)
def _measured(gpu: Gpu, path: Path, changed_ns: int, size: int) -> tuple[Rates, str]:
    """The rates of a calibration file for a device, and the note; kept until the file changes."""
    profile = _read(path, changed_ns, size)
    found = measured_rates(profile, gpu)
    said = [] if _is_of(gpu, profile) else [f"it was measured on {profile['device']['name']}"]
    if profile.get("small") is True:
        said.append("its sizes are those of the tests, so its figures mean nothing")
    if found.filled:
        said.append(f"taken from the default, scaled: {', '.join(found.filled)}")
    return found.rates, f"calibration {path.stem}: {'; '.join(said)}" if said else ""


def _measured_on(gpu: Gpu) -> Path | None:
    """The newest full calibration of this device; None where there is none."""
    known = [one for one in _profiles() if _is_of(gpu, one[1]) and one[1].get("small") is not True]
    newest = max(known, key=lambda one: _age(one[1]), default=None)
    return None if newest is None else newest[0]


def _age(profile: Mapping[str, Any]) -> tuple[tuple[int, ...], str]:
    """(torch release, date) of a calibration, in an order by which the newest is the largest."""
    release = str(profile["torch"]).partition("+")[0]
    return tuple(int(part) for part in release.split(".") if part.isdigit()), str(profile["date"])


def _is_of(gpu: Gpu, profile: Mapping[str, Any]) -> bool:
    """Whether a calibration was measured on this device: the same profile by name, the same memory."""
    device = profile["device"]
    if device["type"] == "cpu" or gpu.architecture == "cpu":
        return bool(device["type"] == gpu.architecture and gpu.name == device["name"])
    try:
        named, _ = load_gpu(device["name"])
    except ConfigError:
        return False
    total = device.get("total_bytes")
    same = not isinstance(total, int) or abs(total / gpu.total_bytes - 1) <= _SAME_MEMORY
    return named.slug == gpu.slug and same


def _profiles() -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Every measured calibration there is; what cannot be read is passed over."""
    for entry in measured_entries():
        try:
            yield entry.path, _loaded(entry.path)
        except ConfigError:
            continue


def _loaded(path: Path) -> Mapping[str, Any]:
    """A file's measured profile, kept until the file changes. Raises ConfigError."""
    return _read(path, *stamp(path))


@lru_cache(maxsize=64)
def _read(path: Path, changed_ns: int, size: int) -> Mapping[str, Any]:
    return read(path)


@lru_cache(maxsize=64)
def _is_default(path: Path, changed_ns: int, size: int) -> bool:
    return is_default(path)


def cpu_device(name: str, threads: int, calibration: str = AUTO) -> tuple[Gpu, Path] | None:
    """This CPU as a device with the rates measured on it, and their file; None where there are none.

    A CPU has no datasheet: its peaks are the measured ceilings, its bandwidth that of a copy, and
    `default` means no rates. auto: the newest calibration of a CPU of this name with as many threads.
    """
    word = calibration.strip()
    if word == DEFAULT:
        return None
    if word == AUTO:
        known = [one for one in _profiles() if _is_cpu(one[1], name, threads)]
        found = max(known, key=lambda one: _age(one[1]), default=None)
        if found is None:
            return None
        path, profile = found
    else:
        path = find(word)
        profile = _loaded(path)
    return as_device(profile), path


def _is_cpu(profile: Mapping[str, Any], name: str, threads: int) -> bool:
    device = profile["device"]
    same = device["type"] == "cpu" and device["name"] == name
    return same and device.get("cpu_threads") == threads and profile.get("small") is not True


def as_device(profile: Mapping[str, Any]) -> Gpu:
    """A CPU's calibration as a device: its peaks are the measured ceilings, its memory rate a copy's.

    Raises ConfigError where the calibration has neither.
    """
    device, summary = profile["device"], profile["summary"]
    copies = [row for row in summary.get("bandwidth", ()) if row.get("what") == "copy"]
    ceilings = summary.get("gemm_ceiling", ())
    peaks = {row["dtype"]: float(row["flops_per_s"]) for row in reversed(ceilings)}
    if not copies or not peaks:
        raise ConfigError(
            f"calibration: {profile['name']} has no ceilings or no copies; rule: a whole one"
        )
    largest = max(copies, key=lambda row: row["tensor_bytes"])
    return Gpu(
        name=device["name"], slug=profile["name"], vendor="cpu", architecture="cpu", marketed_gb=0.0,
        total_bytes=int(device.get("total_bytes") or 0), total_bytes_source="measured",
        memory_bandwidth_bytes_per_s=float(largest["bytes_per_s"]), peak_flops_per_s=peaks,
    )  # fmt: skip
