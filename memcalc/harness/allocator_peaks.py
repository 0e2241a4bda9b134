"""What PyTorch's CUDA allocator says of a step: peaks of four kinds of bytes, phase by phase.

requested: what tensors asked for, scratch and workspaces inside kernels included; allocated: rounded
to blocks; active: allocated, and freed blocks another stream may still use; reserved: what the
allocator holds of the device. The counters live on the host and move when Python runs an operator, so
reading or resetting them at a phase's boundary waits for nothing. On a CPU everything is None.
Checked by: harness/test_measure.py (with stand-in counters; not yet read on a GPU).
"""

from __future__ import annotations

from typing import Any

import torch

#: Kind of bytes -> its name in torch.cuda.memory_stats, without ".peak" or ".current".
KINDS = {
    "requested_bytes": "requested_bytes.all",
    "allocated_bytes": "allocated_bytes.all",
    "active_bytes": "active_bytes.all",
    "reserved_bytes": "reserved_bytes.all",
}
Bytes = dict[str, int | None]


def current(device: torch.device) -> Bytes | None:
    """Bytes of each kind held now; None on a CPU."""
    return _read(device, "current") if device.type == "cuda" else None


def reset(device: torch.device) -> None:
    """Start new peaks from what is held now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peaks(device: torch.device) -> Bytes | None:
    """Peaks since the last reset; None on a CPU."""
    return _read(device, "peak") if device.type == "cuda" else None


def retries(device: torch.device) -> int | None:
    """How often the allocator gave cached blocks back to go on; None on a CPU."""
    if device.type != "cuda":
        return None
    return int(torch.cuda.memory_stats(device).get("num_alloc_retries", 0))


def _read(device: torch.device, what: str) -> Bytes:
    stats = torch.cuda.memory_stats(device)
    return {kind: stats.get(f"{name}.{what}") for kind, name in KINDS.items()}


def highest(readings: list[Bytes | None]) -> Bytes | None:
    """The greatest of each kind over several readings; None without any."""
    known = [reading for reading in readings if reading is not None]
    if not known:
        return None
    return {
        kind: max((v for reading in known if (v := reading[kind]) is not None), default=None)
        for kind in KINDS
    }


class PhasePeaks:
    """Peaks of each phase of one step: call `enter` as each phase begins, `done` after the last.

    A phase that comes again (several micro-batches) keeps its highest.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.phases: dict[str, Bytes] = {}
        self._phase = ""
        reset(device)

    def enter(self, name: str) -> None:
        """Close the phase before and start a new peak."""
        self.close()
        self._phase = name
        reset(self.device)

    def close(self) -> None:
        """Take the peaks since the last boundary into the phase they belong to."""
        now = peaks(self.device)
        if now is not None and self._phase:
            best = highest([self.phases.get(self._phase), now])
            assert best is not None
            self.phases[self._phase] = best

    def done(self) -> dict[str, Any] | None:
        """{"peak": {kind: bytes}, "phases": {phase: {kind: bytes}}}; None on a CPU."""
        self.close()
        self._phase = ""
        overall = highest(list(self.phases.values()))
        return None if overall is None else {"peak": overall, "phases": self.phases}
