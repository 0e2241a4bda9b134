"""What a worker does for each kind of job; imports torch. A job and its answer are plain values.

Checked by: tests/harness/test_gpu_sweep.py.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.sweep import questions
from benchmarks.sweep.setups import Spec, model_of
from memcalc.harness.calibration.microbench_step import phase_times
from memcalc.harness.device import device_facts
from memcalc.harness.failures import first_line
from memcalc.harness.local import local_kernels
from memcalc.harness.measure import MeasureOptions, clean, measure
from memcalc.harness.record_head import new_record
from memcalc.harness.step import TrainingStep
from memcalc.harness.watch.op_times import op_times


def facts(job: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The device, and the versions of what runs on it."""
    return {"status": "ok", "device": device_facts(device)}


def question(job: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """One question's record."""
    found = questions.ask(job["id"], device, job["tiny"], Path(job["out"]))
    record = {**new_record("question"), "id": job["id"], **found, "device": device_facts(device)}
    if device.type == "cuda":
        clean(device)
    return {"status": found["status"], "record": record}


def held_bytes(device: torch.device) -> dict[str, int] | None:
    """What the allocator holds after everything was dropped: both 0 where the cache is clean."""
    if device.type != "cuda":
        return None
    try:
        clean(device)
    except RuntimeError as error:  # after some errors a context answers every call with them
        return {"unreadable": 1, "error": first_line(error)}  # type: ignore[dict-item]
    return {
        "allocated_bytes": torch.cuda.memory_allocated(device),
        "reserved_bytes": torch.cuda.memory_reserved(device),
    }


def measure_setup(job: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """One setup's record, the cache proven clean before and looked at after it.

    status "unclean": something of an earlier setup is still there, nothing was run.
    """
    before = held_bytes(device)
    if before is not None and any(before.values()):
        return {"status": "unclean", "held": before}
    spec = Spec(job["model"], job["training"], job["kernels"])
    if spec.compiled:
        torch._dynamo.reset()
    plan = spec.plan(local_kernels(spec.config, spec.setup, spec.kernels, device.type))
    start = time.perf_counter()
    options = MeasureOptions(
        device=str(device), steps=job["steps"], warmup=job["warmup"], ceiling=False,
        tracked=job.get("tracked", True),
    )  # fmt: skip
    record = measure(plan, options)
    record["sweep"] = {
        "key": spec.key, "label": spec.label(), "seconds": time.perf_counter() - start,
        "held_before": before, "held_after": held_bytes(device),
    }  # fmt: skip
    return {"status": record["status"], "record": record}


def time_setup(job: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """One setup's record with many steps, its phases, and the seconds of each operator.

    Phases and operators are of a model built anew after the timed run; where they cannot be had a note
    says why, and the steps stay.
    """
    found = measure_setup({**job, "tracked": False}, device)
    record = found.get("record")
    if record is None:
        return found
    record["kind"] = "timing"
    if record["status"] != "ok":
        return found
    try:
        spec = Spec(job["model"], job["training"], job["kernels"])
        kernels = local_kernels(spec.config, spec.setup, spec.kernels, device.type)
        step = TrainingStep(spec.plan(kernels), device)
        step.run()
        record["time"]["phases"] = phase_times(step)
        record["ops"] = [one._asdict() for one in op_times(step)]
        del step
    except RuntimeError as error:
        record["notes"].append(f"after the timed steps: {first_line(error)}")
    record["sweep"]["held_after"] = held_bytes(device)
    return found


def decode_setup(job: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """One generation's record, the estimate by default rates in it."""
    from benchmarks.sweep.decode_stage import Asked
    from memcalc.harness.decode_verify import decode_estimate, decode_plan, verify_decode

    asked = Asked(*job["asked"])
    config = model_of(asked.model)
    plan, generation = decode_plan(
        config, asked.setup(), {}, device.type, (asked.new_tokens, asked.cache)
    )
    told = decode_estimate(generation, device, "default", None)
    options = MeasureOptions(device=str(device), steps=job["steps"], warmup=1, ceiling=False)
    record = verify_decode(plan, generation, told, options)
    return {"status": record["status"], "record": record}


def calibrate_device(job: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The calibration profile as TOML, and how much of it was measured."""
    from memcalc.harness.calibration.calibrate import run
    from memcalc.inputs import calibrations

    profile = run(device, small=job["tiny"], deadline_s=job["seconds"])
    late = sum("deadline" in entry["reason"] for entry in profile["skipped"])
    Path(job["out"], "calibration.toml").write_text(calibrations.to_text(profile), "utf-8")
    return {
        "status": "ok",
        "record": {**new_record("calibration-run"), "status": "ok", "name": profile["name"],
                   "points": len(profile["points"]), "skipped": profile["skipped"], "late": late,
                   "device": device_facts(device)},
    }  # fmt: skip
