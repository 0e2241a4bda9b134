"""The stage of the sweep that times steps: some 36 of the memory sweep's setups, with enough steps.

Each record holds every step, the phases, the seconds of each operator by the profiler, and the setup
itself, so that any later version of the time model can be held against it (`report.times`). Setups of one
group share a process. No torch. Checked by: tests/harness/test_timing_stage.py.
"""

from __future__ import annotations

from typing import Any

from benchmarks.sweep import predictions
from benchmarks.sweep.children import Child
from benchmarks.sweep.setups import Spec, memory_setups, tiny_setups
from benchmarks.sweep.stages import Sweep
from memcalc.harness.record_head import new_record

#: Every so many setups of the memory sweep one is timed.
_EVERY = 4
STEPS, WARMUP = 10, 4
#: A timed run has about this many times the steps the memory sweep's guess is for.
_LONGER = 4.0


def timing_setups(tiny: bool) -> list[Spec]:
    """The setups that are timed: none that must run out of memory."""
    specs = tiny_setups()[:2] if tiny else memory_setups()[::_EVERY]
    return [spec for spec in specs if not spec.expects_oom]


def timing(sweep: Sweep) -> None:
    """Time every setup that is left, process by process."""
    device = predictions.device_for(sweep.facts)
    done = sweep.kept.timed(sweep.name)
    specs = timing_setups(sweep.tiny)
    groups: dict[tuple[str, bool], list[Spec]] = {}
    for spec in specs:
        if spec.key in done:
            sweep.count("timing", "had before")
        else:
            groups.setdefault(spec.group, []).append(spec)
    number = 0
    for group in groups.values():
        child: Child | None = None
        for spec in group:
            sweep.tell("timing", number, sum(map(len, groups.values())))
            number += 1
            predicted = predictions.predict(spec, device, sweep.kind)
            guess_s = _LONGER * predictions.guess_s(spec, predicted, sweep.kind)
            if reason := _refused(sweep, predicted, guess_s, child is None):
                sweep.count("timing", reason)
                continue
            child = child or sweep.start()
            if not _time(sweep, child, (spec, predicted, guess_s)):
                child.close()
                child = None
        if child is not None:
            child.close()


def _refused(sweep: Sweep, predicted: dict[str, Any], guess_s: float, starts: bool) -> str:
    """Why a setup is not run: no estimate, predicted not to fit, or no time."""
    if "error" in predicted or predicted["fits"] is False:
        return "refused" if "error" in predicted else "predicted not to fit"
    return "" if sweep.allows("timing", guess_s, starts) else "no time"


def _time(sweep: Sweep, child: Child, setup: tuple[Spec, dict[str, Any], float]) -> bool:
    """Time one setup and keep its record; whether the process can take another."""
    spec, predicted, guess_s = setup
    steps = {"steps": 3 if sweep.tiny else STEPS, "warmup": 1 if sweep.tiny else WARMUP}
    job = {"kind": "timing", "model": spec.model, "training": spec.training,
           "kernels": spec.kernels, **steps}  # fmt: skip
    reply = sweep.ask(child, job, guess_s)
    record = reply.get("record")
    if record is None:
        said = {"type": reply.get("error_type"), "message": reply.get("error", reply["status"])}
        record = {**new_record("timing", spec.plan()), "status": "failed", "error": said,
                  "device": sweep.facts}  # fmt: skip
    stated = {"model": spec.model, "training": spec.training, "kernels": spec.kernels}
    record["sweep"] = {**record.get("sweep", {}), "key": spec.key, "label": spec.label(),
                       "role": "timing", "spec": stated}  # fmt: skip
    record["estimate"] = predicted
    sweep.kept.add(record)
    sweep.count("timing", record["status"])
    sweep.log.line(f"{spec.label()} [timing]: {record['status']}")
    clean = not any((record["sweep"].get("held_after") or {}).values())
    return clean and record["status"] == "ok"
