"""A measured generation: memory and time of the prompts' pass and of the steps after it, as a record.

Order: build; warm-up generations; timed ones, nothing read back inside; one whose memory the CUDA
allocator's counters say, pass by pass; one under the storage tracker, which counts every tensor.
Record: "memory" has weights, cache after the prompts and at the end, and the peak of each phase; "time"
the seconds of every prompts' pass and of every step. A stage that raises leaves the earlier ones there.
Checked by: harness/test_decode.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from memcalc.engine.plan import Plan
from memcalc.engine.serving.generation import Generation, generation_memory
from memcalc.harness import allocator_peaks, host
from memcalc.harness.allocator_peaks import PhasePeaks
from memcalc.harness.decode import Decoding
from memcalc.harness.device import empty_cache, synchronize
from memcalc.harness.measure import MeasureOptions, measure
from memcalc.harness.measured_run import MeasuredRun, Progress
from memcalc.harness.step_clock import StepClock, frozen_garbage, spread_of
from memcalc.harness.watch.tensors import place
from memcalc.harness.watch.tracker import StorageTracker

MEASURED, VERIFIED = "measure-decode", "verify-decode"


def measure_decode(
    plan: Plan, asked: Generation, options: MeasureOptions, progress: Progress | None = None
) -> dict[str, Any]:
    """The record of generations measured on a device; as `measure`, with "decode" beside "setup"."""
    record = measure(plan, options, progress, partial(DecodeRun, asked=asked))
    record["kind"] = MEASURED
    record["decode"] = {
        "batch": asked.batch, "prompt": asked.prompt, "new_tokens": asked.steps, "cache": asked.code,
    }  # fmt: skip
    return record


class DecodeRun(MeasuredRun):
    """The stages of a measured generation."""

    def __init__(
        self, plan: Plan, options: MeasureOptions, device: torch.device, record: dict[str, Any],
        progress: Progress | None, *, asked: Generation,
    ) -> None:  # fmt: skip
        super().__init__(plan, options, device, record, progress)
        self.asked = asked
        self.decoding: Decoding | None = None
        self.total = 2 + self.warmup + self.steps + options.tracked
        self.taken: list[list[float]] = []

    def host_bytes(self) -> int:
        """What the generation takes of host memory on a CPU, by the estimate."""
        return generation_memory(self.asked).peak_bytes

    def all(self) -> None:
        """Every stage; the record is complete when this returns."""
        self._enter("build")
        start = time.perf_counter()
        decoding = self.decoding = Decoding(self.asked, self.device, self.options.seed)
        self._collect()
        self.time["build_s"] = time.perf_counter() - start
        self.readings["built"] = self.driver.read()
        self._enter("warm-up")
        for _ in range(self.warmup):
            decoding.run(self._note_phase)
            self._tell(1)
        synchronize(self.device)
        empty_cache(self.device)
        self._enter("timed generations")
        self._generate_timed(decoding)
        self._enter("memory")
        self._read_memory(decoding)
        self._tell(self.total)

    def _generate_timed(self, decoding: Decoding) -> None:
        with frozen_garbage():
            for _ in range(self.steps):
                clock = StepClock(self.device)
                decoding.run(partial(_mark, clock))
                clock.mark()
                self.taken.append(clock.seconds())
                self._tell(1)
        self.allocator["timed"] = allocator_peaks.peaks(self.device)
        self.readings["timed"] = self.driver.read()
        self.time |= times_of(self.taken, self.asked.batch)

    def _read_memory(self, decoding: Decoding) -> None:
        self.peaks = PhasePeaks(self.device)
        decoding.run(self._note_phase)
        self.allocator["generation"] = self.peaks.done()
        self.peaks = None
        self.readings["generated"] = self.driver.read()
        self._tell(1)
        tensors = tracked_generation(decoding) if self.options.tracked else {}
        on_gpu = self.device.type == "cuda"
        memory = self.record["memory"]
        memory |= {
            **tensors,
            "allocator": dict(self.allocator) if on_gpu else None,
            "driver": {**self.readings, "method": self.driver.method} if on_gpu else None,
            "host_peak_bytes": host.peak_rss_bytes(),
            "tensors_by": "storage tracker, one generation" if tensors else None,
        }
        if (generation := self.allocator["generation"]) is not None:
            peak = generation["peak"]
            memory["peak_allocator_requested_bytes"] = peak["requested_bytes"]
            memory["peak_allocated_bytes"] = peak["allocated_bytes"]
            memory["peak_reserved_bytes"] = peak["reserved_bytes"]

    def salvage(self) -> None:
        """After an exception: what was timed until then."""
        if self.taken and "time_per_output_token_s" not in self.time:
            self.time |= times_of(self.taken, self.asked.batch)

    def release(self) -> None:
        """Let go of the model and its cache."""
        self.decoding = None
        self._collect()


def _mark(clock: StepClock, name: str) -> None:
    clock.mark()


def times_of(taken: list[list[float]], batch: int) -> dict[str, Any]:
    """Seconds of prompts' passes and steps, from those of every pass of every generation."""
    first = [passes[0] for passes in taken]
    later = [seconds for passes in taken for seconds in passes[1:]]
    prefill, step = spread_of(first), spread_of(later)
    median = step["median_s"]
    return {
        "prefill_s": prefill["median_s"],
        "time_per_output_token_s": median,
        "p10_s": step["p10_s"],
        "p90_s": step["p90_s"],
        "tokens_per_s": batch / median if median else None,
        "passes_s": taken,
    }


def tracked_generation(
    decoding: Decoding, on_pass: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """Bytes of one generation's tensors: weights, cache, the peak of each phase and where it is."""
    tracker = StorageTracker(decoding.device.type)
    tracker.track(decoding.model, decoding.held())
    tracker.reset()
    caches: list[int] = []

    def enter(name: str) -> None:
        tracker.set_phase(name)
        if on_pass is not None:
            on_pass(name)

    def tell(ids: Tensor) -> None:
        assert decoding.model.cache is not None
        caches.append(held_bytes(decoding.model.cache.held()))

    with tracker:
        decoding.run(enter, tell)
    peaks = {name: peak.nbytes for name, peak in tracker.phase_peaks.items()}
    at = {name: f"{name}/{place(peak.where)}" for name, peak in tracker.phase_peaks.items()}
    top = max(peaks, key=lambda name: peaks[name])
    return {
        "weights_bytes": held_bytes(list(decoding.model.parameters())),
        "prompt_kv_cache_bytes": caches[0],
        "kv_cache_bytes": caches[-1],
        "phases": peaks,
        "phase_peaks_at": at,
        "peak_requested_bytes": peaks[top],
        "peak_at": at[top],
    }


def held_bytes(tensors: list[Tensor]) -> int:
    """Bytes of the storages of some tensors, each once."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage() for tensor in tensors}
    return sum(storage.nbytes() for storage in storages.values())
