"""The "memory" of a record: an estimate's names on top, the readings they are from beneath.

peak_requested_bytes, phases, saved_for_backward_bytes, states, breakdown: tensors, by the storage
tracker. peak_allocated_bytes, peak_active_bytes: PyTorch's allocator over the steps after the first.
peak_reserved_bytes, device_used_bytes: the most that was held before the cache was emptied, as in a
run that never empties it. Unknown is None, as everything of the allocator and driver is on a CPU.
Nothing here needs torch. Checked by: harness/test_measure.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

_TENSORS = (
    "peak_requested_bytes", "peak_at", "peak_primitive", "phases", "phase_peaks_at",
    "saved_for_backward_bytes", "gathered_bytes", "live_before_bytes", "states", "breakdown",
)  # fmt: skip


def memory_summary(
    allocator: Mapping[str, Any] | None,
    driver: Mapping[str, Any],
    tensors: Mapping[str, Any] | None,
    host_peak_bytes: int | None,
) -> dict[str, Any]:
    """The record's "memory". allocator, driver: readings by stage; tensors: the tracked step's."""
    later = _stages(allocator, "warm_up", "timed", "step")
    used = [driver[stage]["used_bytes"] for stage in _READ if stage in driver]
    reserved_then = driver.get("reserved_then_bytes")
    used_then = (driver.get("warmed_up") or {}).get("used_bytes")
    context = None
    if used_then is not None and reserved_then is not None:
        context = used_then - reserved_then
    found: dict[str, Any] = {name: None for name in _TENSORS}
    if tensors is not None:
        found |= {name: tensors[name] for name in _TENSORS}
    found |= {
        "peak_allocator_requested_bytes": _most(later, "requested_bytes"),
        "peak_allocated_bytes": _most(later, "allocated_bytes"),
        "peak_active_bytes": _most(later, "active_bytes"),
        "peak_reserved_bytes": _most(later, "reserved_bytes"),
        "device_used_bytes": max((v for v in used if v is not None), default=None),
        "context_bytes": context,
        "unseen_bytes": unseen_bytes(allocator, tensors),
        "host_peak_bytes": host_peak_bytes,
        "allocator": None if allocator is None else dict(allocator),
        "driver": dict(driver) if driver.get("method") else None,
        "tensors_by": None if tensors is None else "storage tracker, one step",
    }
    return found


_READ = ("built", "warmed_up", "timed", "stepped")


def unseen_bytes(
    allocator: Mapping[str, Any] | None, tensors: Mapping[str, Any] | None
) -> dict[str, int] | None:
    """What the allocator was asked for beyond the tensors seen, at the peak of each phase.

    Both sides are of the same step: workspaces of cuBLAS, and scratch inside kernels where the two
    peaks coincide. None off CUDA.
    """
    if allocator is None or tensors is None or not allocator.get("tracked_step"):
        return None
    phases = allocator["tracked_step"]["phases"]
    return {
        name: phases[name]["requested_bytes"] - seen
        for name, seen in tensors["phases"].items()
        if phases.get(name, {}).get("requested_bytes") is not None
    }


def _stages(allocator: Mapping[str, Any] | None, *names: str) -> list[Mapping[str, Any]]:
    """The peaks of some stages, of those that were run."""
    found = [allocator[name] for name in names if allocator and allocator.get(name)]
    return [reading.get("peak", reading) for reading in found]


def _most(readings: Iterable[Mapping[str, Any]], kind: str) -> int | None:
    return max((v for reading in readings if (v := reading.get(kind)) is not None), default=None)
