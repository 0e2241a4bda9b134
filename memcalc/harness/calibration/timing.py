"""Timing one operation on one device: random operands, cold caches, batches, median and spread.

Why each step is taken:
- operands are random: a GPU draws less power on zeros and runs them up to 15 % faster;
- operands rotate over more than twice the last cache, as in a training step, which touches gigabytes
  between two uses of a weight;
- calls are timed in batches, by CUDA events around each batch, so that the kernels of a batch follow
  each other as in a step and the events' own microsecond is spread over many calls. Nothing waits for
  the device between batches. A CPU with one thread is timed by the process's own CPU time, which
  another process on the machine does not lengthen; with several by `time.perf_counter`;
- what comes first (lazy loading of kernels, choice of algorithms, clocks) is run and thrown away;
- Python's garbage collector is off while the clock runs.
Times are seconds of one call. Checked by: harness/test_timing.py.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from memcalc.collector import paused
from memcalc.harness.device import synchronize

T = TypeVar("T")
Call = Callable[[int], object]
#: No more operand sets than this, however small they are.
MOST_SETS = 64
_LEAST_BATCHES = 5


class Protocol(NamedTuple):
    """How long a point is timed: at the least `least_s` in batches of about `batch_s`."""

    least_s: float
    batch_s: float
    warmup_s: float


#: The stated minimum of a point: 300 ms on a GPU, 100 ms on a CPU, 10 ms in the tests' tiny mode.
CUDA = Protocol(least_s=0.3, batch_s=0.01, warmup_s=0.1)
CPU = Protocol(least_s=0.1, batch_s=0.01, warmup_s=0.02)
TINY = Protocol(least_s=0.01, batch_s=0.001, warmup_s=0.002)


class Timed(NamedTuple):
    """Seconds of one call over some batches, and how many calls they held together."""

    median_s: float
    p10_s: float
    p90_s: float
    batches: int
    calls: int


def quantile(ordered: Sequence[float], q: float) -> float:
    """The q-quantile of sorted values, linear between neighbours; q from 0 to 1."""
    place = q * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def summary(samples: Sequence[float], calls: int) -> Timed:
    """Median and the tenth and ninetieth percentile of batches' seconds a call."""
    ordered = sorted(samples)
    return Timed(
        quantile(ordered, 0.5), quantile(ordered, 0.1), quantile(ordered, 0.9), len(ordered), calls
    )


def last_cache_bytes(device: torch.device) -> int:
    """Bytes of the device's last cache: L2 of a GPU (64 MiB where unknown), L3 of a CPU (32 MiB)."""
    if device.type == "cuda":
        size = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)
        return int(size) or 64 << 20
    try:
        size = os.sysconf("SC_LEVEL3_CACHE_SIZE")
    except (ValueError, OSError, AttributeError):
        size = 0
    return size if 0 < size < 1 << 30 else 32 << 20


def cpu_clock() -> Callable[[], float]:
    """Seconds on a CPU: of this process alone where torch has one thread, else those of the wall."""
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


class Bench:
    """A device to time operations on, with its own random numbers."""

    def __init__(self, device: torch.device, protocol: Protocol, seed: int = 0) -> None:
        self.device = device
        self.protocol = protocol
        self.cache_bytes = last_cache_bytes(device)
        self.generator = torch.Generator(device).manual_seed(seed)

    def randn(self, *shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
        """Normal numbers on the device."""
        wide = torch.randn(
            *shape, device=self.device, dtype=torch.float32, generator=self.generator
        )
        return wide.mul_(scale).to(dtype)

    def randint(self, high: int, *shape: int) -> Tensor:
        """Whole numbers below `high`, int64, on the device."""
        return torch.randint(high, shape, device=self.device, generator=self.generator)

    def sets(self, make: Callable[[], T], set_bytes: float) -> list[T]:
        """Operand sets enough that none is still in the cache when its turn comes again.

        set_bytes: what one call reads and writes. A set over twice the cache needs no second.
        """
        between = 2 * self.cache_bytes  # bytes touched before a set is used again
        count = 1 if set_bytes >= between else 1 + math.ceil(between / set_bytes)
        return [make() for _ in range(min(MOST_SETS, count))]

    def time(
        self,
        call: Call,
        calls: int | None = None,
        least_s: float | None = None,
        agree: Callable[[float], float] = float,
    ) -> Timed:
        """Time `call(i)`, i counting up. calls: of one batch, else as many as take `batch_s`."""
        samples, size = self.samples(call, calls, least_s, agree)
        return summary(samples, len(samples) * size)

    def samples(
        self,
        call: Call,
        calls: int | None = None,
        least_s: float | None = None,
        agree: Callable[[float], float] = float,
    ) -> tuple[list[float], int]:
        """Seconds a call of every batch, and the calls of a batch.

        agree: makes the first estimate of a call's seconds the same on all ranks of a run, so that
        all make the same number of calls.
        """
        least = self.protocol.least_s if least_s is None else least_s
        with paused():
            call(0)
            [first] = self._batches(call, 1, 1)
            warm = agree(first)
            count = 1 + math.floor(min(self.protocol.warmup_s / warm, 10_000.0))
            [rough] = self._batches(call, 1, count)
            one = max(agree(rough), 1e-9)
            size = calls or max(1, round(self.protocol.batch_s / one))
            batches = max(_LEAST_BATCHES, math.ceil(least / (size * one)))
            return self._batches(call, batches, size), size

    def _batches(self, call: Call, batches: int, size: int) -> list[float]:
        """Seconds a call of each of `batches` batches of `size` calls."""
        if self.device.type == "cuda":
            return self._cuda_batches(call, batches, size)
        taken, now = [], cpu_clock()
        for batch in range(batches):
            start = now()
            for i in range(batch * size, (batch + 1) * size):
                call(i)
            taken.append(max(now() - start, 1e-9) / size)
        return taken

    def _cuda_batches(self, call: Call, batches: int, size: int) -> list[float]:
        make: Any = torch.cuda.Event
        events = [make(enable_timing=True) for _ in range(batches + 1)]
        synchronize(self.device)
        events[0].record()
        for batch in range(batches):
            for i in range(batch * size, (batch + 1) * size):
                call(i)
            events[batch + 1].record()
        synchronize(self.device)
        pairs = zip(events, events[1:], strict=False)
        return [max(a.elapsed_time(b), 1e-6) / 1000 / size for a, b in pairs]
