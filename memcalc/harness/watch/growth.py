"""How many bytes a call makes live: at its worst moment and when it returns, above where it began.

On CUDA from the allocator's counters of requested bytes, scratch inside kernels included. On a CPU
from the profiler's record of every allocation (it has no counters), which sees what PyTorch's own
allocator hands out; libraries that allocate by themselves are not seen.
Checked by: harness/test_gpu_sweep.py, harness/test_compile.py.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from memcalc.harness.watch.kernel_trace import read_trace


class Growth(NamedTuple):
    """Requested bytes above the start: at the peak, and at the end with the result still held.

    allocated_*: as the CUDA allocator counts blocks; None on a CPU.
    """

    peak_bytes: int
    end_bytes: int
    allocated_peak_bytes: int | None = None
    allocated_end_bytes: int | None = None


def growth(call: Callable[[], object], device: torch.device) -> Growth:
    """What `call` does to live bytes. The result is held until after the last reading."""
    return _on_cuda(call, device) if device.type == "cuda" else _on_cpu(call)


def held(device: torch.device, kind: str = "requested") -> int:
    """Bytes of live tensors now, as the CUDA allocator counts them; 0 on a CPU."""
    if device.type != "cuda":
        return 0
    torch.cuda.synchronize(device)
    return int(torch.cuda.memory_stats(device).get(f"{kind}_bytes.all.current", 0))


def _on_cuda(call: Callable[[], object], device: torch.device) -> Growth:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_stats(device)
    result = call()
    torch.cuda.synchronize(device)
    after = torch.cuda.memory_stats(device)
    del result

    def above(kind: str, what: str) -> int:
        start = before.get(f"{kind}_bytes.all.current", 0)
        return int(after[f"{kind}_bytes.all.{what}"] - start)

    return Growth(
        above("requested", "peak"), above("requested", "current"),
        above("allocated", "peak"), above("allocated", "current"),
    )  # fmt: skip


def _on_cpu(call: Callable[[], object]) -> Growth:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = read_trace(path)
    del result
    changes = sorted(
        (event["ts"], int(event["args"]["Bytes"]))
        for event in events
        if event.get("name") == "[memory]" and int(event["args"].get("Device Type", -1)) == 0
    )
    live = peak = 0
    for _, change in changes:
        live += change
        peak = max(peak, live)
    return Growth(peak, live)


def in_units(found: Growth, unit_bytes: int) -> dict[str, Any]:
    """Peak and end as multiples of a tensor's size, rounded to thousandths."""
    return {
        "peak_bytes": found.peak_bytes,
        "end_bytes": found.end_bytes,
        "peak_units": round(found.peak_bytes / unit_bytes, 3),
        "end_units": round(found.end_bytes / unit_bytes, 3),
    }
