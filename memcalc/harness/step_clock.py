"""Seconds of each step of a loop, and its losses, without waiting for the device inside the loop.

On CUDA an event is recorded between steps and losses are copied to pinned host memory behind them;
both are read after the loop. On a CPU the clock is `time.perf_counter`. Garbage is collected before
the loop and frozen, and the collector is off inside. Checked by: harness/test_measure.py.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from memcalc.harness.calibration.timing import quantile
from memcalc.harness.device import synchronize


class StepClock:
    """Marks between steps; `seconds` gives the time from each mark to the next."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._marks: list[Any] = []

    def mark(self) -> None:
        """A step begins or, after the last, ends here."""
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Seconds of every whole step; waits for the device."""
        synchronize(self.device)
        pairs = zip(self._marks, self._marks[1:], strict=False)
        if self.device.type == "cuda":
            return [a.elapsed_time(b) / 1000 for a, b in pairs]
        return [b - a for a, b in pairs]


class LossLog:
    """The loss of every step, kept on the host: the device holds none of them."""

    def __init__(self, device: torch.device, most: int) -> None:
        self.device, self.most, self.count = device, most, 0
        self._kept: Tensor | None = None

    def add(self, loss: Tensor | None) -> None:
        """Copy one loss behind the step that made it."""
        assert loss is not None
        if self._kept is None:  # in the loss's own dtype, so that the copy needs no cast
            on_gpu = self.device.type == "cuda"
            self._kept = torch.zeros(self.most, dtype=loss.dtype, pin_memory=on_gpu)
        self._kept[self.count].copy_(loss, non_blocking=True)
        self.count += 1

    def summary(self) -> dict[str, Any] | None:
        """First, last, whether all are finite and whether the last is below the first.

        None before the first step. fell is None after fewer than two steps.
        """
        if self._kept is None or not self.count:
            return None
        synchronize(self.device)
        return loss_summary([float(v) for v in self._kept[: self.count].tolist()])


def loss_summary(values: list[float]) -> dict[str, Any]:
    """A run's losses, one or more; fell is None of a single one."""
    finite = all(map(math.isfinite, values))
    fell = finite and values[-1] < values[0] if len(values) > 1 else None
    return {
        "first": values[0],
        "last": values[-1],
        "all_finite": finite,
        "fell": fell,
        "values": values,
    }


@contextmanager
def frozen_garbage() -> Iterator[None]:
    """Collect garbage, then keep the collector away from everything until the end.

    Who had frozen objects before keeps them frozen, and what came since with them.
    """
    was_on, were_frozen = gc.isenabled(), gc.get_freeze_count()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        if not were_frozen:
            gc.unfreeze()
        if was_on:
            gc.enable()


def spread_of(seconds: Sequence[float]) -> dict[str, float | None]:
    """Median, tenth and ninetieth percentile of step times; None without any."""
    if not seconds:
        return dict.fromkeys(("median_s", "p10_s", "p90_s"))
    ordered = sorted(seconds)
    return {
        "median_s": quantile(ordered, 0.5),
        "p10_s": quantile(ordered, 0.1),
        "p90_s": quantile(ordered, 0.9),
    }
