"""Shares of a step from a profiler trace: tensor cores, communication, idle, time by kernel.

Reads the Chrome trace that torch.profiler writes (.json or .json.gz), torch 1.8 to now. No torch.
All times are seconds; a share is a fraction of the step's span on one GPU (of the mean of several).
The span: from the start of the first `ProfilerStep#N` to the end of the last, or to the end of the
last kernel where kernels outlive the step that launched them; without such marks, first to last
kernel. Shares are lengths of unions of intervals, so streams that overlap are counted once; the
table of kernels holds plain sums. A trace without GPU events has shares of None, never zero.

Which unit a kernel runs on is judged by its name, as CLASSES says. Not seen: matrix products that
Triton or Inductor write themselves (their names tell the fused operators, not the instructions);
the class `triton-template` shows how much time that may be. Counted although they do vector work:
the small helpers of fused attention (`flash_bwd_dot_do_o`). A kernel's time is not its tensor cores'
busy time: hardware counters would be needed for that.
Checked by: harness/test_kernel_trace.py.
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from memcalc.errors import ConfigError

Interval = tuple[float, float]


class KernelClass(NamedTuple):
    """Kernels told by words in their names (lower case); `tensor_cores`: they run on them."""

    name: str
    words: tuple[str, ...]
    tensor_cores: bool
    reason: str


#: First match wins. Words are looked for in the lower-cased kernel name.
CLASSES = (
    KernelClass(
        "communication", ("nccl", "nvshmem", "multimem_", "_shot_all_reduce"), False,
        "NCCL's kernels (ncclDevKernel_*, formerly ncclKernel_*), PyTorch's symmetric memory",
    ),
    KernelClass(
        "vector matmul", ("sgemm", "simt", "gemmsn", "gemmk1", "gemv", "fbgemm"), False,
        "products without tensor cores: fp32 (sgemm, CUTLASS simt), cuBLAS's kernels for one or few "
        "columns; FBGEMM's embedding kernels, which only share the letters",
    ),
    KernelClass(
        "attention", ("flash", "fmha", "sdpa"), True,
        "FlashAttention, CUTLASS's memory-efficient attention (fmha), cuDNN's (sdpa)",
    ),
    KernelClass(
        "matmul", ("gemm", "nvjet", "cutlass", "xmma"), True,
        "cuBLAS (gemm; nvjet from CUDA 12.6 on Hopper), CUTLASS, xmma (cuBLAS and cuDNN)",
    ),
    KernelClass(
        "triton-template", ("triton_tem", "triton_mm", "triton_bmm"), False,
        "Inductor's own matmul and attention templates: may use tensor cores, not counted",
    ),
    KernelClass("triton", ("triton_",), False, "Inductor's fused pointwise and reduction kernels"),
    KernelClass(
        "optimizer", ("multi_tensor_apply", "fused_adam"), False,
        "foreach and fused optimizers; also foreach gradient clipping",
    ),
    KernelClass("other", ("",), False, "every other kernel"),
)  # fmt: skip
_KERNEL, _COPY = ("kernel", "concurrent_kernel"), {"memcpy": "memcpy", "memset": "memset"}


class GpuEvent(NamedTuple):
    """One interval of work on a GPU, microseconds; name is "" and kind memcpy or memset for copies."""

    device: str
    kind: str  # a name of CLASSES, memcpy or memset
    name: str
    start: float
    end: float


def classify(name: str) -> KernelClass:
    """The class of a kernel by its name."""
    lowered = name.lower()
    return next(known for known in CLASSES if any(word in lowered for word in known.words))


def read_trace(path: Path) -> list[dict[str, Any]]:
    """The trace's events. ConfigError when the file is missing, cut short or no Chrome trace."""
    try:
        raw = path.read_bytes()
        text = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        content = json.loads(text)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ConfigError(
            f"trace: got {path}, unreadable ({error}); rule: .json or .json.gz"
        ) from None
    events = content.get("traceEvents") if isinstance(content, dict) else content
    if not isinstance(events, list):
        raise ConfigError(f"trace: got {path}; rule: a Chrome trace with a list `traceEvents`")
    return [event for event in events if isinstance(event, dict)]


def union_length(intervals: Iterable[Interval]) -> float:
    """Length covered by at least one interval, each counted once."""
    covered, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        if end > reached:
            covered += end - max(start, reached)
            reached = end
    return covered


def _number(value: Any) -> float | None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if good else None


def _interval(event: Mapping[str, Any]) -> Interval | None:
    """Start and end in microseconds of a complete event; None where either is missing or absurd."""
    start, length = _number(event.get("ts")), _number(event.get("dur"))
    if event.get("ph", "X") != "X" or start is None or length is None or length < 0:
        return None
    return start, start + length


def gpu_events(events: Iterable[Mapping[str, Any]]) -> list[GpuEvent]:
    """Kernels, copies and fills of all GPUs; events that miss a time are left out."""
    found = []
    for event in events:
        category = str(event.get("cat", "")).lower()
        copy = next((kind for word, kind in _COPY.items() if word in category), None)
        times = _interval(event)
        if times is None or (copy is None and category not in _KERNEL):
            continue
        name = str(event.get("name", ""))
        extra = event.get("args")
        device = extra.get("device") if isinstance(extra, dict) else None
        where = str(event.get("pid", 0) if device is None else device)
        found.append(GpuEvent(where, copy or classify(name).name, name, *times))
    return found


def _steps(events: Iterable[Mapping[str, Any]]) -> list[Interval]:
    """The `ProfilerStep#N` marks of the CPU, else of the GPU (they begin with the first kernel)."""
    marks: dict[bool, list[Interval]] = {True: [], False: []}
    for event in events:
        if str(event.get("name", "")).startswith("ProfilerStep#"):
            times = _interval(event)
            if times is not None:
                marks[str(event.get("cat", "")).startswith("gpu")].append(times)
    return marks[False] or marks[True]


def _clipped(work: Sequence[GpuEvent], start: float) -> list[GpuEvent]:
    """What of the work lies after `start`."""
    return [
        e._replace(start=max(e.start, start)) for e in work if e.end > start or e.start >= start
    ]


def _lengths(work: Sequence[GpuEvent]) -> dict[str, float]:
    """Microseconds one GPU spends, by what is counted: unions of intervals."""
    tensor = {known.name for known in CLASSES if known.tensor_cores}
    copies = {*_COPY.values()}

    def union(kinds: Iterable[str] | None = None, but: Iterable[str] = ()) -> float:
        chosen = (e for e in work if (kinds is None or e.kind in kinds) and e.kind not in but)
        return union_length((e.start, e.end) for e in chosen)

    kernels = union(but=copies)
    return {
        "busy": union(),
        "kernel": kernels,
        "tensor_core": union(tensor),
        "communication": union(("communication",)),
        "exposed_communication": kernels - union(but={"communication", *copies}),
    }


def _table(work: Sequence[GpuEvent], top: int) -> list[dict[str, Any]]:
    """Kernels by name, longest total first."""
    rows: dict[str, dict[str, Any]] = {}
    for event in work:
        row = rows.setdefault(
            event.name, {"name": event.name, "class": event.kind, "count": 0, "total_s": 0.0}
        )
        row["count"] += 1
        row["total_s"] += (event.end - event.start) / 1e6
    return sorted(rows.values(), key=lambda row: (-row["total_s"], row["name"]))[:top]


def summarise(events: Sequence[Mapping[str, Any]], top: int = 20) -> dict[str, Any]:
    """Shares, seconds and the `top` kernels of a trace's events; see the head of this module.

    `*_share` divides `*_s` by span_s; all are None without GPU events. busy counts kernels, copies
    and fills; idle_share is what is left. exposed_communication: no compute kernel runs beside it.
    """
    work, steps = gpu_events(events), _steps(events)
    if steps:
        work = _clipped(work, min(start for start, _ in steps))
    ends = [end for _, end in steps] + [event.end for event in work]
    starts = [start for start, _ in steps] or [event.start for event in work]
    span = max(ends) - min(starts) if starts and work else 0.0
    devices = sorted({event.device for event in work})
    result: dict[str, Any] = {
        "steps": len(steps) or None,
        "span_from": ("ProfilerStep" if steps else "kernels") if span else None,
        "span_s": span / 1e6 if span else None,
        "devices": len(devices),
        "gpu_events": len(work),
    }
    names = ("busy", "kernel", "tensor_core", "communication", "exposed_communication")
    per_device = [_lengths([e for e in work if e.device == device]) for device in devices]
    for name in names:
        total = sum(lengths[name] for lengths in per_device) / max(len(devices), 1)
        result[f"{name}_s"] = total / 1e6 if span else None
        result[f"{name}_share"] = total / span if span else None
    result["idle_share"] = 1 - result["busy_share"] if span else None
    by_class: dict[str, float] = {}
    for event in work:
        by_class[event.kind] = by_class.get(event.kind, 0.0) + (event.end - event.start) / 1e6
    result["time_by_class_s"] = dict(sorted(by_class.items(), key=lambda item: -item[1]))
    result["kernels"] = _table(work, top)
    return result


def shares_of(path: Path, top: int = 20) -> dict[str, Any]:
    """`summarise` of a trace file."""
    return summarise(read_trace(path), top)
