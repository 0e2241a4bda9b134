"""Calibrate a device: run the micro-benchmarks in order of value and make one profile of them.

A profile is plain values: what the device and the software are, every measured point, what could not
be measured and why, and a summary fitted from the points (`calibration_summary`). The first tasks
are those a time model needs most; a deadline leaves out the last ones and lists them. An operation
the device cannot do, or that runs out of memory, is listed as well; nothing is made up for it.
Checked by: harness/test_calibrate.py.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from typing import Any

import torch

from memcalc import __version__
from memcalc.harness.calibration import (
    microbench_attention,
    microbench_collectives,
    microbench_decode,
    microbench_fixed,
    microbench_gemm,
    microbench_memory,
    microbench_primitives,
    microbench_step,
    microbench_training,
)
from memcalc.harness.calibration.calibration_residual import generation_residuals, residuals
from memcalc.harness.calibration.calibration_shaped import add_shaped
from memcalc.harness.calibration.calibration_summary import CLASSES
from memcalc.harness.calibration.microbench import CPU, CUDA, SMALL, Point, Scale, Task
from memcalc.harness.calibration.timing import Bench
from memcalc.harness.device import device_facts, empty_cache, synchronize
from memcalc.harness.failures import first_line, is_out_of_memory
from memcalc.harness.local import local_device
from memcalc.harness.malloc import kept
from memcalc.harness.ranks.layout import world
from memcalc.inputs.calibrations import SCHEMA, profile_name, sound

#: What is being measured, points done, points in all.
Progress = Callable[[str, int, int], None]
_REASON_LENGTH = 160
_NO_MEMORY = "out of memory"
_SETUP_S = 0.05  # operands of a point


def run(
    device: torch.device,
    *,
    small: bool = False,
    deadline_s: float | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure the device and return its calibration profile, ready for `calibrations.to_text`.

    small: every kind of point at tiny sizes, a few seconds, for tests; its figures say nothing.
    deadline_s: start nothing that would not end by then. threads: of the CPU, None for torch's.
    progress: called before each point with its label, the points done and those of all.
    Under torchrun every rank must call it; each returns the points of its own device.
    """
    start, date = time.monotonic(), datetime.now(UTC)
    device = microbench_collectives.local_device(device)
    scale = scale_for(device, small)
    with (
        _on(device), _threads(threads), _process_group(device), torch.enable_grad(),
        kept(device.type == "cpu"),
    ):  # fmt: skip
        points, skipped = _measure(device, scale, _Clock(start, deadline_s), progress)
        facts = device_facts(device)
    profile = {
        "schema": SCHEMA,
        "kind": "calibration",
        "memcalc": __version__,
        **{name: facts[name] for name in ("torch", "cuda", "cudnn", "driver")},
        "date": date.isoformat(timespec="seconds"),
        "duration_s": time.monotonic() - start,
        "small": small,
        "ranks": world().size,
        "device": facts,
        "protocol": scale.protocol._asdict(),
        "summary": _fitted([undisturbed(p, device.type) for p in points], skipped),
        "points": points,
        "skipped": skipped,
    }
    plain: dict[str, Any] = _without_none({"name": profile_name(profile), **profile})
    with _threads(threads):
        _add_residuals(plain, device)
    return sound(plain)


def _add_residuals(profile: dict[str, Any], device: torch.device) -> None:
    """Products by the default's formula, then residuals of steps and generations; what cannot be had."""
    makers = {"residual": residuals, "residual_decode": generation_residuals}
    try:
        if (gpu := local_device(device).gpu if device.type == "cuda" else None) is not None:
            add_shaped(profile, gpu)
        found = {name: make(profile, device) for name, make in makers.items()}
    except Exception as error:
        profile["skipped"].append({"point": "residual of two depths", "reason": _reason(error)})
        return
    profile["summary"] |= {name: rows for name, rows in found.items() if rows}


def scale_for(device: torch.device, small: bool) -> Scale:
    """The sizes for a device."""
    if small:
        return SMALL
    return CUDA if device.type == "cuda" else CPU


def tasks_of(scale: Scale) -> list[Task]:
    """All tasks, the most valuable first."""
    gemm, memory, training = microbench_gemm, microbench_memory, microbench_training
    first, *more = scale.tokens
    kernels = ("flash", "cudnn")
    wide, other = scale._replace(head_dims=scale.head_dims[:1]), scale.head_dims[1:]
    narrow = scale._replace(head_dims=other, sequences=scale.sequences[:3])
    return [
        *gemm.square(scale),
        *memory.copies(scale),
        *gemm.products(scale, first, scale.linears),
        *microbench_fixed.fixed_costs(scale),
        *microbench_attention.attention(wide, kernels),
        *microbench_step.launches(scale),
        *microbench_step.steps(scale, scale.steps[:1]),
        *training.losses(scale),
        *training.optimizers(scale),
        *training.clipping(scale),
        *memory.norms(scale),
        *memory.pointwise(scale, scale.pointwise[:1]),
        *microbench_primitives.primitives(scale),
        *microbench_collectives.collectives(scale),
        *gemm.sustained(scale),
        *training.embedding(scale),
        *gemm.products(scale, first, scale.small_linears),
        *(task for tokens in more for task in gemm.products(scale, tokens, scale.linears)),
        *microbench_attention.attention(narrow, kernels),
        *gemm.fp8_products(scale),
        *memory.pointwise(scale, scale.pointwise[1:]),
        *microbench_attention.attention(
            wide._replace(sequences=scale.sequences[:2]), ("efficient",)
        ),
        *gemm.other_dtypes(scale),
        *microbench_step.steps(scale, scale.steps[1:]),
        *microbench_decode.launches(scale),
        *microbench_decode.few_rows(scale),
        *microbench_decode.cached_attention(scale),
        *microbench_decode.whole(scale),
    ]


class _Clock:
    """When a calibration began, and by when it must end."""

    def __init__(self, start: float, deadline_s: float | None) -> None:
        self.start, self.deadline_s = start, deadline_s

    def refuses(self, cost_s: float) -> bool:
        """Whether something of this length would end too late."""
        if self.deadline_s is None:
            return False
        return time.monotonic() - self.start + cost_s > self.deadline_s


def _measure(
    device: torch.device, scale: Scale, clock: _Clock, progress: Progress | None
) -> tuple[list[Point], list[dict[str, str]]]:
    """(points, what was skipped and why), task by task."""
    tasks = tasks_of(scale)
    each = scale.protocol.least_s + 2 * scale.protocol.warmup_s + _SETUP_S
    bench = Bench(device, scale.protocol)
    points: list[Point] = []
    skipped: list[dict[str, str]] = []
    broken = ""
    for done, task in enumerate(tasks):
        if progress is not None:
            progress(task.label, done, len(tasks))
        reason = broken or _too_late(task, each + task.cost_s, clock, device)
        if not reason:
            found, reason = _attempt(task, bench)
            points += [found] if found else []
            broken = _broken(device) if reason else ""
        if reason:
            skipped.append({"point": task.label, "reason": reason})
    if progress is not None:
        progress("fits", len(tasks), len(tasks))
    return points, skipped


def _too_late(task: Task, cost_s: float, clock: _Clock, device: torch.device) -> str:
    """Why a task is not begun; a collective one is left out by all ranks or by none."""
    late = clock.refuses(cost_s)
    if task.collective:
        late = microbench_collectives.agreed(float(late), device) > 0
    return f"the deadline of {clock.deadline_s:g} s" if late else ""


def _attempt(task: Task, bench: Bench) -> tuple[Point | None, str]:
    """The task's point, or why there is none: what a kernel refuses differs by device and release."""
    found, reason = None, ""
    try:
        found = task.run(bench)
    except Exception as error:
        reason = _reason(error)
    if task.cost_s or reason == _NO_MEMORY:  # a model may be part of reference cycles
        gc.collect()
    with suppress(RuntimeError):  # a device that is broken; `_broken` says so
        empty_cache(bench.device)
    return found, reason


def undisturbed(point: Point, device: str) -> Point:
    """A point as it is fitted: a GPU's median; of a CPU, which others use too, the tenth percentile,
    for what they do only ever adds."""
    if device != "cpu":
        return point
    seconds = point["p10_s"]
    rates = {f"{n}_per_s": point[n] / seconds for n in ("flops", "bytes") if n in point}
    return {**point, "median_s": seconds, **rates}


def _fitted(points: list[Point], skipped: list[dict[str, str]]) -> dict[str, Any]:
    """The summary; a class whose fit fails is skipped, for the points cost more than the fit."""
    found = {}
    for name, make in CLASSES.items():
        try:
            rows = make(points)
        except Exception as error:
            skipped.append({"point": f"summary of {name}", "reason": _reason(error)})
            continue
        if rows:
            found[name] = rows
    return found


def _reason(error: Exception) -> str:
    """An error as one short line."""
    if is_out_of_memory(error):
        return _NO_MEMORY
    said = first_line(error)
    line = said if isinstance(error, NotImplementedError) else f"{type(error).__name__}: {said}"
    return line if len(line) <= _REASON_LENGTH else line[: _REASON_LENGTH - 3] + "..."


def _broken(device: torch.device) -> str:
    """Why nothing more can run: after some errors a CUDA context answers every call with them."""
    try:
        empty_cache(device)
        synchronize(device)
    except RuntimeError as error:
        if world().size > 1:
            raise  # the other ranks would wait for this one
        return f"the device failed before: {_reason(error)}"
    return ""


def _without_none(value: Any) -> Any:
    """The same tree without what is unknown: TOML has no null."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_none(item) for item in value]
    return value


@contextmanager
def _on(device: torch.device) -> Iterator[None]:
    """The device as the current one, as graphs, streams and events expect."""
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        yield


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """So many CPU threads, and as many as before afterwards."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _process_group(device: torch.device) -> Iterator[None]:
    """The ranks' process group, where there is more than one rank."""
    made = world().size > 1 and microbench_collectives.join(device)
    try:
        yield
    finally:
        if made:
            microbench_collectives.leave()
