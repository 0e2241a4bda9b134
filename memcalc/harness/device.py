"""The device a run uses: which one a word means, and every fact about it a record keeps.

"cuda", "cuda:1" or "cpu"; without a word the current CUDA device, else the CPU. What is not there is
refused in one line that says what is. Bytes are as torch and the driver say them; None is unknown.
Checked by: harness/test_device.py.
"""

from __future__ import annotations

import platform
import re
import warnings
from typing import Any

import torch

from memcalc.errors import ConfigError, unknown
from memcalc.harness import host, nvml


def pick_device(text: str | None = None) -> torch.device:
    """The device a word means. Raises ConfigError naming the valid ones when it is not there."""
    if text is None:
        return torch.device("cuda", torch.cuda.current_device()) if has_cuda() else _CPU
    word = text.strip().lower()
    match = re.fullmatch(r"(cuda|cpu)(?::(\d{1,4}))?", word)
    if word.startswith("gpu"):
        why = "valid: " + _listed() if has_cuda() else f"{_why_no_cuda()}; valid: cpu"
        raise ConfigError(f"--device: got {text!r}; rule: cuda, cuda:1 or cpu; {why}")
    if match is None:
        raise unknown("--device", text, _valid())
    kind, index = match.group(1), match.group(2)
    if kind == "cpu":
        if index not in (None, "0"):
            raise ConfigError(f"--device: got {text!r}; rule: there is one CPU; valid: cpu")
        return _CPU
    if not has_cuda():
        raise ConfigError(f"--device: got {text!r}; {_why_no_cuda()}; valid: cpu")
    count = torch.cuda.device_count()
    number = torch.cuda.current_device() if index is None else int(index)
    if number >= count:
        raise ConfigError(f"--device: got {text!r}; rule: {count} seen; valid: {_listed()}")
    return torch.device("cuda", number)


_CPU = torch.device("cpu")


def has_cuda() -> bool:
    """Whether torch sees a CUDA device; what it warns of a missing driver is not repeated here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.cuda.is_available()


def _valid() -> list[str]:
    count = torch.cuda.device_count() if has_cuda() else 0
    return ["cpu", *(["cuda"] if count else []), *(f"cuda:{i}" for i in range(count))]


def _listed() -> str:
    names = _valid()
    return ", ".join(names) if len(names) <= 10 else f"cpu, cuda, cuda:0 to {names[-1]}"


def _why_no_cuda() -> str:
    """Why torch sees no CUDA device: built without it, no driver, or none visible."""
    if torch.version.cuda is None and getattr(torch.version, "hip", None) is None:
        return f"torch {torch.__version__} is built without CUDA"
    if host.driver_version() is None:
        return f"torch {torch.__version__} is built with CUDA and finds no driver"
    return "a driver is loaded and no CUDA device is visible to this process"


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given; at once on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def empty_cache(device: torch.device) -> None:
    """Give the allocator's unused segments back to the driver; nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def device_facts(device: torch.device) -> dict[str, Any]:
    """What a record says of the device and the software on it, in base units.

    total_bytes: as torch sees it; driver_total_bytes: as NVML does. Without CUDA the CUDA fields are
    None and `name`, `cores`, `threads`, `ram_bytes` are the CPU's; both devices have `host`.
    """
    cpu = host.cpu_facts()
    facts: dict[str, Any] = {
        "type": device.type,
        "name": cpu["name"],
        "total_bytes": cpu["ram_bytes"],
        "driver_total_bytes": None,
        "compute_capability": None,
        "multiprocessors": None,
        "l2_bytes": None,
        "driver": host.driver_version() if device.type == "cuda" else None,
        "cuda": torch.version.cuda,
        "cudnn": None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_threads": torch.get_num_threads(),
        "host": cpu,
    }
    if device.type == "cuda":
        facts |= _cuda_facts(device)
    return facts


def _cuda_facts(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    facts = {
        "name": properties.name,
        "index": device.index,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "total_bytes": properties.total_memory,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": getattr(properties, "L2_cache_size", None),
        "allocator": {
            "backend": torch.cuda.get_allocator_backend(),
            "settings": _allocator_settings(),
        },
    }
    return {**facts, **nvml.board_facts(device)}


def _allocator_settings() -> str:
    """The allocator's settings as the environment states them; "" is PyTorch's defaults."""
    import os

    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # the first is of torch 2.9 and later
    return next((os.environ[name] for name in names if os.environ.get(name)), "")
