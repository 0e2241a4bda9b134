"""Seconds of real steps of a drawn decoder on this CPU, in the time of the process itself.

With one thread a process's CPU time is what a step would take on a machine that does nothing else, but
for caches and memory it shares. Phases are of steps of their own, because naming them costs time.
Checked by: tests/harness/test_cpu_time.py.
"""

from __future__ import annotations

import time
from typing import Any

from benchmarks.cpu.decoders import Drawn
from memcalc.harness.calibration.microbench_step import phase_times
from memcalc.harness.calibration.timing import cpu_clock
from memcalc.harness.malloc import kept
from memcalc.harness.step import TrainingStep
from memcalc.harness.step_clock import frozen_garbage, spread_of

_WARMUP, _LEAST_STEPS = 2, 7


def timed(one: Drawn, least_s: float) -> dict[str, Any]:
    """{"step_s": all, "median_s", "p10_s", "p90_s", "wall_s", "phases"}; at least seven steps."""
    with kept():
        return _timed(TrainingStep(one.plan(), "cpu"), least_s)


def _timed(step: TrainingStep, least_s: float) -> dict[str, Any]:
    for _ in range(_WARMUP):
        step.run()
    taken: list[float] = []
    now = cpu_clock()
    start = time.perf_counter()
    with frozen_garbage():
        while len(taken) < _LEAST_STEPS or sum(taken) < least_s:
            begin = now()
            step.run()
            taken.append(now() - begin)
    wall = (time.perf_counter() - start) / len(taken)
    return {"step_s": taken, **spread_of(taken), "wall_s": wall, "phases": phase_times(step)}
