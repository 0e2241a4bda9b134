"""The stages of the sweep that are about time: calibration, MFU runs, the two-depth residual. No torch.

Each case has a process of its own. Checked by: tests/harness/test_gpu_sweep.py.
"""

from __future__ import annotations

from typing import Any

from benchmarks.sweep.stages import Sweep
from memcalc.harness.record_head import new_record

#: Seconds: what a whole calibration takes, and with how many it is worth beginning.
_CALIBRATION_S = {"cuda": 200.0, "cpu": 60.0}
_LEAST_CALIBRATION_S = 45.0
_CASES = ("1.3b", "8b-slice")
_MFU_S = {"eager": 80.0, "compiled": 200.0}
_LEAST_MFU_S = {"eager": 50.0, "compiled": 120.0}
_RESIDUAL_S = {"eager": 25.0, "compiled": 60.0}


def _job(sweep: Sweep, stage: str, job: dict[str, Any], seconds: float) -> None:
    """Ask one job of a fresh process and keep its record, or one that says how it failed."""
    job = {**job, "tiny": sweep.tiny, "seconds": seconds, "out": str(sweep.out)}
    with sweep.child() as child:
        reply = sweep.ask(child, job, seconds)
    record: dict[str, Any] | None = reply.get("record")
    if record is None:
        kind = "calibration-run" if job["kind"] == "calibrate" else job["kind"]
        record = {**new_record(kind), "status": "failed", "error": reply.get("error"),
                  "case": job.get("case"), "runners": [], "device": sweep.facts}  # fmt: skip
    sweep.kept.add(record)
    sweep.count(stage, record["status"])
    sweep.log.line(f"{stage} {job.get('case') or ''}: {record['status']}")


def _seconds(sweep: Sweep, wanted: float) -> float:
    """Seconds a job may take: what it wants, or what is left once its process runs."""
    return min(wanted, sweep.clock.left_s() - 15.0) if sweep.kind == "cuda" else wanted


def calibration(sweep: Sweep) -> None:
    """The micro-benchmarks of this device into calibration.toml, unless a whole one is there."""
    if sweep.kept.is_done("calibration-run", sweep.name):
        sweep.count("calibration", "had before")
        return
    seconds = _seconds(sweep, _CALIBRATION_S[sweep.kind])
    if seconds < _LEAST_CALIBRATION_S:
        sweep.count("calibration", "no time")
        return
    sweep.tell("calibration", 0, 1)
    _job(sweep, "calibration", {"kind": "calibrate"}, seconds)


def mfu(sweep: Sweep) -> None:
    """Our decoder against transformers' Llama: each case eager, then compiled, a record each."""
    wanted = [(case, mode) for case in _CASES for mode in _MFU_S]
    for number, (case, mode) in enumerate(wanted[:1] if sweep.tiny else wanted):
        sweep.tell("mfu", number, len(wanted))
        if mode in sweep.kept.modes_run(case, sweep.name):
            sweep.count("mfu", "had before")
            continue
        seconds = _seconds(sweep, _MFU_S[mode])
        if not sweep.tiny and seconds < _LEAST_MFU_S[mode]:
            sweep.count("mfu", "no time")
            continue
        settings = sweep.kept.settings_of(case, sweep.name)
        job = {"kind": "mfu", "case": case, "modes": [mode], "settings": settings}
        _job(sweep, "mfu", job, seconds)


def residual(sweep: Sweep) -> None:
    """Step times of Llama-3-8B's decoder at 2 and 4 layers, eager and compiled."""
    if sweep.kept.is_done("residual", sweep.name):
        sweep.count("residual", "had before")
        return
    modes = ["eager"] if sweep.tiny else ["eager", "compiled"]
    fitting = [
        m for m in modes if sweep.tiny or sweep.allows("residual", _RESIDUAL_S[m], fresh=True)
    ]
    if not fitting:
        sweep.count("residual", "no time")
        return
    sweep.tell("residual", 0, 1)
    seconds = _seconds(sweep, sum(_RESIDUAL_S[mode] for mode in fitting) * 1.5)
    _job(sweep, "residual", {"kind": "residual", "modes": fitting, "wanted": modes}, seconds)
