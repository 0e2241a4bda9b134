"""The host: its processor, and how much memory a run may still take.

Read from Linux's /proc and control groups; None where a platform has no such files. A container's
limit counts as well as the machine's free memory. Checked by: harness/test_device.py.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from memcalc.errors import MemcalcError
from memcalc.units import gib

_PROC = Path("/proc")
_CGROUP = Path("/sys/fs/cgroup")
#: Beyond the tensors of a step: the interpreter, torch's code, what the allocator keeps.
HOST_OVERHEAD_BYTES = 512 << 20


class DoesNotFitError(MemcalcError):
    """A setup that cannot fit in host memory; found before anything was started."""

    def __init__(self, asked_bytes: int, available_bytes: int) -> None:
        self.asked_bytes, self.available_bytes = asked_bytes, available_bytes
        super().__init__(
            f"memory: got a step of {gib(asked_bytes)} and {gib(HOST_OVERHEAD_BYTES)} beside it; "
            f"rule: at most the {gib(available_bytes)} this machine has free; "
            "try --layers, --seq or --micro-batch"
        )


def refuse_what_cannot_fit(step_bytes: int) -> None:
    """Raise DoesNotFitError unless a step of so many bytes fits in free host memory."""
    free = available_bytes()
    if free is not None and step_bytes + HOST_OVERHEAD_BYTES > free:
        raise DoesNotFitError(step_bytes, free)


def available_bytes() -> int | None:
    """Bytes a process can still take: the machine's MemAvailable, or less by a control group."""
    machine = _meminfo().get("MemAvailable")
    group = _cgroup_free()
    known = [value for value in (machine, group) if value is not None]
    return min(known) if known else None


def total_bytes() -> int | None:
    """Bytes of host memory, or a control group's limit where that is less."""
    limit = _number(_CGROUP / "memory.max")
    known = [value for value in (_meminfo().get("MemTotal"), limit) if value is not None]
    return min(known) if known else None


def cpu_facts() -> dict[str, Any]:
    """Model, sockets' cores, threads this process may use, and memory in bytes."""
    names: list[str] = []
    cores: set[tuple[str, str]] = set()
    socket = ""
    for line in _text(_PROC / "cpuinfo").splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "model name":
            names.append(value)
        elif key == "physical id":
            socket = value
        elif key == "core id":
            cores.add((socket, value))
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "name": names[0] if names else platform.processor() or platform.machine(),
        "cores": len(cores) or None,
        "threads": usable,
        "ram_bytes": total_bytes(),
        "ram_available_bytes": available_bytes(),
    }


def peak_rss_bytes() -> int | None:
    """The most host memory this process ever held, in bytes."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def driver_version() -> str | None:
    """The NVIDIA driver's version, as its kernel module says."""
    words = _text(_PROC / "driver" / "nvidia" / "version").partition("\n")[0].split()
    return next((w for w in words if w.count(".") in (1, 2) and w[0].isdigit()), None)


def _meminfo() -> dict[str, int]:
    found = {}
    for line in _text(_PROC / "meminfo").splitlines():
        key, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdigit():
            found[key] = int(words[0]) * 1024
    return found


def _cgroup_free() -> int | None:
    """What a control group (version 2) leaves, file pages it can drop counted as free."""
    limit, used = _number(_CGROUP / "memory.max"), _number(_CGROUP / "memory.current")
    if limit is None or used is None:
        return None
    cached = 0
    for line in _text(_CGROUP / "memory.stat").splitlines():
        key, _, value = line.partition(" ")
        if key == "inactive_file" and value.isdigit():
            cached = int(value)
    return max(0, limit - used + cached)


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
