"""What a report says in words: the verdict, and what each of its charts shows.

Sentences hold the figures of the same estimate or rows, so a reader who sees no picture loses nothing.
Checked by: cli/test_report.py.
"""

from __future__ import annotations

from typing import Any

from memcalc.engine.results import Estimate
from memcalc.planning.cases import Case
from memcalc.planning.train_time import gpus_of
from memcalc.units import gib

_HEADS = {"fits": "Fits", "tight": "Fits, but tight", "does-not-fit": "Does not fit"}
_NAMED = 3  # categories named in a sentence


def verdict_of(case: Case, result: Estimate) -> dict[str, Any]:
    """{"verdict", "fits", "headline", "detail"}: whether it fits, by how much, on what."""
    words = _HEADS.get(result.verdict or "", "No verdict")
    return {
        "verdict": result.verdict,
        "fits": result.fits,
        "headline": f"{words}: {_by_how_much(result)}",
        "detail": _detail(case, result),
    }


def _by_how_much(result: Estimate) -> str:
    memory = result.memory
    used, room = memory.device_used_bytes, memory.headroom_bytes
    if result.fits is None or room is None or used is None:
        needs = memory.peak_allocated_bytes if used is None else used
        return f"it needs {gib(needs)}, and no GPU was named"
    if result.fits is False and room >= 0:
        return "the GPU has room, the host lacks memory"
    if result.fits is False:
        return f"short by {gib(-room)}"
    if room < 0:
        return "once cached blocks are given back"
    return f"{gib(room)} to spare"


def _detail(case: Case, result: Estimate) -> str:
    """`Needs 27.07 GiB of the 79.05 GiB usable on each of 64 H100 SXM 80GB; stage 3 needs most.`"""
    gpu, count, memory = case.device.gpu, gpus_of(result), result.memory
    used, usable = memory.device_used_bytes, memory.usable_bytes
    if used is None:
        return f"Tensors take {gib(memory.peak_allocated_bytes)} at the peak."
    said = f"Needs {gib(used)}"
    if usable is not None:
        name = "GPU" if gpu is None else gpu.name
        said += f" of the {gib(usable)} usable"
        said += f" on each of {count:,} {name}" if count > 1 else f" on one {name}"
    if memory.low_bytes is not None and memory.high_bytes is not None:
        said += f"; its band is {gib(memory.low_bytes)} to {gib(memory.high_bytes)}"
    if result.fits and (memory.headroom_bytes or 0) < 0:
        said += "; the allocator gives cached blocks back by itself before it fails"
    if memory.stage is not None:
        said += f"; stage {memory.stage.stage} of {len(memory.stages)} (from 0) needs most"
    return f"{said}."


def breakdown_said(result: Estimate) -> str:
    """The largest categories at the peak."""
    memory = result.memory
    parts = {name: size for name, size in memory.breakdown._asdict().items() if size > 0}
    total = memory.peak_allocated_bytes
    largest = sorted(parts.items(), key=lambda part: -part[1])[:_NAMED]
    named = ", ".join(f"{name} {gib(size)} ({size / total:.0%})" for name, size in largest)
    used, usable = memory.device_used_bytes, memory.usable_bytes
    end = ""
    if used is not None and usable is not None:
        side = "above" if used > usable else "below"
        end = f" With what the allocator and the driver add {gib(used)}, {side} the {gib(usable)} usable."
    return f"At the peak {gib(total)} are allocated: {named}.{end}"


def timeline_said(result: Estimate) -> str:
    """Where the peak is, and how high each phase goes."""
    memory = result.memory
    phases = ", ".join(f"{name} {gib(size)}" for name, size in memory.phases.items())
    return f"Memory peaks at {memory.peak_at}. Most bytes of tensors by phase: {phases}."
