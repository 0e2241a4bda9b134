"""The stages of a measured run, in order, each filling its part of the record as it ends.

build; the first step apart, for the optimizer's states come into being in it; warm-up; then the cache
is emptied and peaks are reset; timed steps, nothing read back inside; one step whose memory is read at
each phase's boundary; one under the storage tracker; if asked for, profiled steps; a matmul for the
ceiling, when the model is gone. A stage that raises leaves the earlier ones in the record.

Record: "memory" has an estimate's names at the top (tensors' bytes by the tracker, allocated and
reserved by PyTorch's allocator, used by the driver) and the readings of each stage under "allocator"
and "driver"; "time" every step's seconds; "utilisation"; "loss" and "loss_fell"; "readings";
"timeline": bytes of tensors over the tracked step (watch/step_timeline.py).
Checked by: harness/test_measure.py.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from memcalc.engine.memory import step_memory
from memcalc.engine.plan import Plan
from memcalc.harness import allocator_peaks, host
from memcalc.harness.allocator_peaks import PhasePeaks
from memcalc.harness.device import empty_cache, synchronize
from memcalc.harness.failures import first_line, is_out_of_memory
from memcalc.harness.memory_summary import memory_summary
from memcalc.harness.nvml import DriverMemory, Sampler
from memcalc.harness.step import TrainingStep
from memcalc.harness.step_clock import LossLog, StepClock, frozen_garbage, spread_of
from memcalc.harness.utilisation import (
    datasheet_peak,
    matmul_dtype,
    measured_ceiling,
    utilisation,
)
from memcalc.harness.watch.step_timeline import instants, timeline_record
from memcalc.harness.watch.tensors import tracked_step

if TYPE_CHECKING:
    from memcalc.harness.measure import MeasureOptions

#: (stage, steps done, steps in all)
Progress = Callable[[str, int, int], None]
_TELL_EVERY_S = 0.2
_PROFILED = 4  # two that are not recorded, two that are


class MeasuredRun:
    """One run of a plan; `stage` and `phase` say where it is, for whoever must report an end."""

    devices = 1

    def __init__(
        self, plan: Plan, options: MeasureOptions, device: torch.device, record: dict[str, Any],
        progress: Progress | None,
    ) -> None:  # fmt: skip
        self.plan, self.options, self.device, self.record = plan, options, device, record
        self.stage = "build"
        self.phase: str | None = None
        self.step: TrainingStep | None = None
        self.peaks: PhasePeaks | None = None
        self.clock: StepClock | None = None
        self.driver = DriverMemory(device)
        steps, warmup = options.steps or 0, options.warmup or 0
        self.steps, self.warmup = steps, warmup
        self.losses = LossLog(device, 1 + warmup + steps)
        self.total = 2 + warmup + steps + 1 + options.tracked + options.ceiling
        self.total += _PROFILED * options.profile
        self.progress, self._done, self._told = progress, 0, 0.0
        self.time: dict[str, Any] = {"method": "cuda events" if _on_gpu(device) else "perf_counter"}
        self.allocator: dict[str, Any] = {"before": allocator_peaks.current(device)}
        self.readings: dict[str, Any] = {}
        record |= {"time": self.time, "memory": {}, "loss_fell": None, "notes": []}

    def all(self) -> None:
        """Every stage; the record is complete when this returns."""
        self._enter("build")
        self._build()
        self._enter("first step")
        self._first_step()
        self._enter("warm-up")
        self._warm_up()
        self._enter("timed steps")
        self._timed()
        self._enter("memory")
        self._memory()
        if self.options.profile:
            self._enter("profile")
            self._profile()
        self.release()
        self._enter("ceiling")
        self._utilisation()
        self._tell(self.total)

    def _enter(self, stage: str) -> None:
        self.stage, self.phase = stage, None
        self._told = 0.0
        self._tell(0)

    def _tell(self, steps: int) -> None:
        """Count steps, and tell whoever watches, a few times a second."""
        self._done = min(self._done + steps, self.total)
        now = time.monotonic()
        if self.progress is not None and now - self._told >= _TELL_EVERY_S:
            self._told = now
            self.progress(self.stage, self._done, self.total)

    def _note_phase(self, name: str) -> None:
        self.phase = name
        if self.peaks is not None:
            self.peaks.enter(name)

    def _build(self) -> None:
        start = time.perf_counter()
        self.step = self._made_step()
        self._collect()
        synchronize(self.device)
        empty_cache(self.device)
        self.time["build_s"] = time.perf_counter() - start
        self.allocator["built"] = allocator_peaks.current(self.device)
        self.readings["built"] = self.driver.read()
        self._tell(1)

    def _made_step(self) -> TrainingStep:
        return TrainingStep(self.plan, self.device, self.options.seed)

    def host_bytes(self) -> int:
        """What the step takes of host memory on a CPU, by the estimate."""
        return step_memory(self.plan).peak_bytes

    def _first_step(self) -> None:
        assert self.step is not None
        self.peaks = PhasePeaks(self.device)
        start = time.perf_counter()
        self.losses.add(self.step.run(self._note_phase, keep_loss=True))
        synchronize(self.device)
        self.time["first_step_s"] = time.perf_counter() - start
        self.allocator["first_step"] = self.peaks.done()
        self.peaks = None
        self._tell(1)

    def _warm_up(self) -> None:
        """Steps before the clock; in the first the phase is followed, for memory may run out there."""
        assert self.step is not None
        allocator_peaks.reset(self.device)
        self.clock = StepClock(self.device)
        self.clock.mark()
        for number in range(self.warmup):
            self.losses.add(self.step.run(None if number else self._note_phase, keep_loss=True))
            self.phase = None
            self.clock.mark()
            self._tell(1)
        self.time["warmup_s"] = self.clock.seconds()
        self.allocator["warm_up"] = allocator_peaks.peaks(self.device) if self.warmup else None
        self.readings["warmed_up"] = self.driver.read()
        held = allocator_peaks.current(self.device)
        self.readings["reserved_then_bytes"] = None if held is None else held["reserved_bytes"]

    def _timed(self) -> None:
        assert self.step is not None
        synchronize(self.device)
        empty_cache(self.device)
        allocator_peaks.reset(self.device)
        self.clock = StepClock(self.device)
        with frozen_garbage(), Sampler(self.device) as sampler:
            try:
                self.clock.mark()
                for _ in range(self.steps):
                    self.losses.add(self.step.run(keep_loss=True))
                    self.clock.mark()
                    self._tell(1)
                synchronize(self.device)
            finally:
                self._read_clock()
        self.allocator["timed"] = allocator_peaks.peaks(self.device)
        self.allocator["retries"] = allocator_peaks.retries(self.device)
        self.readings["timed"] = self.driver.read()
        self.record["readings"] = sampler.summary()
        self._read_losses()

    def _read_clock(self) -> None:
        """Step times as far as they go, and tokens/s from their median."""
        if self.clock is None:
            return
        seconds = self.clock.seconds()
        self.clock = None
        if self.stage != "timed steps":
            self.time.setdefault("warmup_s", seconds)
            return
        resolved = self.plan.resolved
        tokens = resolved.tokens * resolved.grad_accum_steps
        spread = spread_of(seconds)
        median = spread["median_s"]
        self.time |= {
            "step_s": seconds,
            **spread,
            "tokens_per_step": tokens,
            "tokens_per_s": tokens / median if median else None,
        }

    def _read_losses(self) -> None:
        loss = self.losses.summary()
        self.record["loss"] = loss
        updates = self.plan.optimizer.name != "none"
        self.record["loss_fell"] = loss["fell"] if loss and updates else None

    def _memory(self) -> None:
        """A step read phase by phase, and one under the tracker read likewise."""
        assert self.step is not None
        self.peaks = PhasePeaks(self.device)
        self.step.run(self._note_phase)
        self.allocator["step"] = self.peaks.done()
        self.readings["stepped"] = self.driver.read()
        self._tell(1)
        self.peaks, tensors = PhasePeaks(self.device), None
        if self.options.tracked and not self.plan.kernels.compiled:
            try:
                tracked = tracked_step(self.step, self._note_phase)
                tensors = tracked.plain()
                self.record["timeline"] = timeline_record(instants(tracked))
                self.allocator["tracked_step"] = self.peaks.done()
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self._pass_over("tracked step", error)
            self._tell(1)
        self.peaks = None
        self._summarise(tensors)

    def _summarise(self, tensors: dict[str, Any] | None) -> None:
        self.record["memory"] = memory_summary(
            self.allocator if _on_gpu(self.device) else None,
            {**self.readings, "base_bytes": self.driver.base_bytes, "method": self.driver.method},
            tensors,
            host.peak_rss_bytes(),
        )

    def _profile(self) -> None:
        assert self.step is not None
        from memcalc.harness.watch.profiling import profile_step

        try:
            self.record["profile"] = profile_step(self.step.run, self.device)
        except Exception as error:  # a profiler that cannot run leaves the rest as it is
            self._pass_over("profile", error)
        self._tell(_PROFILED)

    def _pass_over(self, what: str, error: Exception) -> None:
        """A stage the run can do without."""
        self.record["notes"].append(f"{what}: {first_line(error)}")

    def _utilisation(self) -> None:
        rate = self.time.get("tokens_per_s")
        if rate is None:
            return
        dtype, facts = matmul_dtype(self.plan), self.record["device"]
        ceiling = measured_ceiling(self.device, dtype) if self.options.ceiling else None
        sheet = datasheet_peak(facts["name"], facts["total_bytes"], dtype)
        on_sheet = sheet if _on_gpu(self.device) else None
        reference = self.options.reference_tokens_per_s
        self.record["utilisation"] = utilisation(
            self.plan, rate, on_sheet, ceiling, reference, self.devices
        )

    def salvage(self) -> None:
        """After an exception: step times, losses and peaks as far as they go."""
        if self.peaks is not None:
            name = {"first step": "first_step", "memory": "step"}.get(self.stage, self.stage)
            if self.allocator.get(name) is None:
                self.allocator[name] = self.peaks.done()
            self.peaks = None
        elif _on_gpu(self.device):
            self.allocator.setdefault("at_the_end", allocator_peaks.peaks(self.device))
        if not self.record["memory"]:
            self._summarise(None)
        self._read_clock()
        self._read_losses()

    def release(self) -> None:
        """Let go of the model and everything that came of it."""
        if self.step is not None:
            self.step = None
            self._collect()

    def _collect(self) -> None:
        """Garbage would count as memory in use on a GPU; on a CPU only tensors are counted."""
        if _on_gpu(self.device):
            gc.collect()


def _on_gpu(device: torch.device) -> bool:
    return device.type == "cuda"
