"""The breakdown chart's object: memory at the peak by category, a bar for each setup or pipeline stage.

The parts of a bar are the estimate's categories at the peak, then what the allocator reserves beyond
them, communicators and the CUDA context: they sum to the driver-used bytes, exactly. Without the
allocator's simulation they sum to allocated bytes, context and communicators.
Checked by: unit/test_charts_breakdown.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memcalc.engine.results import Estimate, MemoryEstimate
from memcalc.planning.cases import Case, Point
from memcalc.planning.charts.head import (
    head,
    label_of,
    label_text,
    model_on_gpu,
    need_one,
    setup_line,
)

#: A picture holds no more bars than this.
MOST = 40


def breakdown(points: Sequence[Point]) -> dict[str, Any]:
    """The JSON object: a row for each point, or for each stage of a single point with stages.

    Raises the first refusal's ConfigError where every point is refused. Row: label, labels, command,
    model, gpu, stage (None: the one that needs most), parts (category -> bytes), total_bytes (their sum),
    usable_bytes, over_bytes (of the total beyond usable; 0 where it fits), low_bytes, high_bytes, peak_at,
    fits, verdict, reason (why it is refused, else None).
    """
    results = need_one(points)
    staged = len(points) == 1 and bool(results[0].memory.stages)
    if staged:
        rows = _stage_rows(points[0], results[0])
        what = "memory at the peak of each pipeline stage"
    else:
        rows = [_row(point) for point in points]
        what = "memory at the peak, by category"
    known = {name for row in rows for name, size in row["parts"].items() if size}
    names = [name for row in rows for name in row["parts"]]
    return {
        **head("breakdown", f"{model_on_gpu(points)}: {what}", setup_line(points), points),
        "per": "stage" if staged else "setup",
        "categories": [name for name in dict.fromkeys(names) if name in known],
        "rows": rows,
        "notes": list(dict.fromkeys(note for result in results for note in result.notes)),
    }


def parts_of(memory: MemoryEstimate) -> dict[str, int]:
    """Category -> bytes at the peak, with what makes driver-used bytes of them."""
    return {
        **memory.breakdown._asdict(),
        "overhead": memory.reserved_overhead_bytes or 0,
        "communication": memory.communication_bytes,
        "context": memory.context_bytes,
    }


def _row(point: Point) -> dict[str, Any]:
    labels, result = dict(point.case.labels), point.result
    if result is None:
        return _filled(_named(point, label_of(point), labels), None)
    label = label_of(point) or result.model.name
    row = _filled(_named(point, label, labels), result.memory)
    return {**row, "fits": result.fits, "verdict": result.verdict,
            "over_bytes": _over(result.memory, result.fits)}  # fmt: skip


def _stage_rows(point: Point, result: Estimate) -> list[dict[str, Any]]:
    """A stage with room fits; one without does unless the whole setup does not."""
    rows = []
    for number, memory in enumerate(result.memory.stages):
        labels = {**point.case.labels, "stage": str(number)}
        row = _filled(_named(point, label_text(labels), labels), memory)
        room = memory.headroom_bytes
        fits = None if room is None else room >= 0 or result.fits
        layers = () if memory.stage is None else memory.stage.layers
        row |= {"stage": number, "layers": [list(block) for block in layers], "fits": fits,
                "over_bytes": _over(memory, fits)}  # fmt: skip
        rows.append(row)
    return rows


def _named(point: Point, label: str, labels: Mapping[str, str]) -> dict[str, Any]:
    case = point.case
    gpu = case.device.gpu if isinstance(case, Case) else None
    return {
        "label": label, "labels": dict(labels), "command": case.command,
        "model": case.model if isinstance(case, Case) else None,
        "gpu": None if gpu is None else gpu.slug, "stage": None, "reason": point.reason,
    }  # fmt: skip


def _filled(row: dict[str, Any], memory: MemoryEstimate | None) -> dict[str, Any]:
    """A row with its memory; None: a refused one, whose numbers are unknown."""
    parts = {} if memory is None else parts_of(memory)
    names = ("usable_bytes", "headroom_bytes", "low_bytes", "high_bytes", "peak_at",
             "device_used_bytes", "peak_allocated_bytes", "peak_reserved_bytes")  # fmt: skip
    return {
        **row,
        "parts": parts,
        "total_bytes": sum(parts.values()) if parts else None,
        **{name: None if memory is None else getattr(memory, name) for name in names},
        "over_bytes": None,
        "fits": None,
        "verdict": None,
    }


def _over(memory: MemoryEstimate, fits: bool | None) -> int | None:
    """Bytes beyond what the GPU gives; 0 where it fits, or where something else is too small."""
    if fits is None or memory.headroom_bytes is None:
        return None
    return 0 if fits else max(0, -memory.headroom_bytes)
