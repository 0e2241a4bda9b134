"""verify --decode: generations measured here beside what the engine says of the same ones.

Tensors are compared to the byte, as in training. Seconds are compared with the calibration's: no band of
decode times was measured, so they are shown and not judged.
Checked by: harness/test_decode.py, cli/test_verify_decode.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from memcalc.engine.device_side import device_of
from memcalc.engine.plan import Plan
from memcalc.engine.serving.forward import layer_kinds
from memcalc.engine.serving.generation import (
    Generation,
    generation_memory,
    generation_time,
)
from memcalc.engine.timing.topology import wires_of
from memcalc.errors import ConfigError
from memcalc.harness.comparison import NOT_JUDGED, Comparison, Row, exact, timed
from memcalc.harness.decode_run import VERIFIED, measure_decode
from memcalc.harness.host import cpu_facts
from memcalc.harness.local import check_code, local_device, local_plan
from memcalc.harness.measure import MeasureOptions
from memcalc.harness.measured_run import Progress
from memcalc.harness.model.cache import check_cache
from memcalc.inputs.choose_rates import choose_rates, cpu_device
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.training import TrainingSetup

#: Row -> field of an estimate's and of a record's "memory".
_STATES = {
    "weights": "weights_bytes", "cache after the prompts": "prompt_kv_cache_bytes",
    "cache at the end": "kv_cache_bytes",
}  # fmt: skip
_TIMES = (
    ("prefill", "s", "prefill_s"), ("one token", "s", "time_per_output_token_s"),
    ("tokens/s", "tokens/s", "tokens_per_s"),
)  # fmt: skip
_ALLOCATOR = {
    "asked for": "peak_allocator_requested_bytes", "peak allocated": "peak_allocated_bytes",
    "peak reserved": "peak_reserved_bytes",
}  # fmt: skip


def decode_plan(
    config: ModelConfig,
    setup: TrainingSetup,
    kernels: Mapping[str, Any],
    device: str,
    asked: tuple[int, str],
) -> tuple[Plan, Generation]:
    """The plan of a run's decoder on a kind of device, and what it generates. Raises ConfigError.

    setup: its micro-batch is the sequences, its length the positions at the end. asked: (new tokens of
    each sequence, code of the cache).
    """
    plan = local_plan(config, setup, kernels, device)
    check_code(plan)
    new_tokens, code = asked
    if plan.kernels.compiled or plan.kernels.fp8_linear:
        raise ConfigError(
            "decode: got compiled blocks or fp8; rule: plain ones; valid: stack torch"
        )
    if plan.config.position_embedding == "relative":
        raise ConfigError(f"decode: {config.name}: relative positions have no cache here")
    if code == "static" and plan.kernels.attention != "eager":
        raise ConfigError(
            f"cache: got static with attention {plan.kernels.attention}; rule: all of it is read under a "
            "mask; nearest valid: --cache whole, or --attention eager"
        )
    resolved = plan.resolved
    prompt = resolved.seq_len - new_tokens
    found = Generation(
        plan.config, plan.kernels, resolved.micro_batch_size, prompt, new_tokens, code
    )
    check_cache(found.config, layer_kinds(found.config), code, found.context)
    return plan, found


def decode_estimate(
    asked: Generation, device: torch.device, calibration: str, threads: int | None
) -> dict[str, Any]:
    """What the engine says: {"memory", "time", "notes"}; times are None without rates of the device."""
    memory = generation_memory(asked)
    time, notes = _timed(asked, device, calibration, threads)
    return {
        "memory": {
            "weights_bytes": memory.weights_bytes,
            "prompt_kv_cache_bytes": memory.prompt_cache_bytes,
            "kv_cache_bytes": memory.cache_bytes,
            "phases": {name: one.bytes for name, one in memory.phases.items()},
            "phase_peaks_at": {name: one.instant.name for name, one in memory.phases.items()},
            "peak_requested_bytes": memory.peak_bytes,
        },
        "time": time,
        "notes": notes,
    }


def _timed(
    asked: Generation, device: torch.device, calibration: str, threads: int | None
) -> tuple[dict[str, Any], list[str]]:
    empty = dict.fromkeys(("prefill_s", "time_per_output_token_s", "tokens_per_s", "calibration"))
    if device.type == "cuda":
        here = local_device(device)._replace(calibration=calibration)
        why = "no profile of this GPU is known"
    else:
        count = threads or torch.get_num_threads()
        found = cpu_device(cpu_facts()["name"], count, calibration)
        here = device_of(None)
        why = f"no calibration of this CPU with {count} threads is known"
        if found is not None:
            here = here._replace(gpu=found[0], calibration=str(found[1]))
    if here.gpu is None:
        return empty, [f"no times: {why}"]
    rates, note = choose_rates(here.gpu, here.calibration)
    time = generation_time(asked, rates, wires_of(here, ParallelPlan(), rates))
    step = time.step.seconds
    said = {
        "prefill_s": time.prefill.seconds, "time_per_output_token_s": step,
        "tokens_per_s": asked.batch / step, "calibration": rates.name, "bound": time.step.bound,
    }  # fmt: skip
    return said, [note] if note else []


def verify_decode(
    plan: Plan,
    asked: Generation,
    estimate: Mapping[str, Any],
    options: MeasureOptions,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The measurement's record with the estimate and the comparison in it."""
    record = measure_decode(plan, asked, options, progress)
    record["kind"], record["estimate"] = VERIFIED, dict(estimate)
    if record["status"] == "ok":
        record["comparison"] = compared(estimate, record).plain()
    return record


def compared(estimate: Mapping[str, Any], record: Mapping[str, Any]) -> Comparison:
    """Hold an estimate against a record of the same generation."""
    told, seen = estimate["memory"], record["memory"]
    rows = [
        exact(name, "states", "bytes", told[key], seen.get(key)) for name, key in _STATES.items()
    ]
    phases = seen.get("phases") or {}
    rows += [
        exact(f"peak in {name}", "tensors", "bytes", size, phases.get(name))
        for name, size in told["phases"].items()
    ]
    peak = "peak_requested_bytes"
    rows.append(exact("peak requested", "tensors", "bytes", told[peak], seen.get(peak)))
    if seen.get("allocator") is not None:
        rows += [
            Row(name, "allocator", "bytes", told[peak], seen.get(key), None, None, NOT_JUDGED)
            for name, key in _ALLOCATOR.items()
        ]
    time, measured = estimate["time"], record["time"]
    rows += [
        timed(name, unit, time.get(key), measured.get(key), (None, None))
        for name, unit, key in _TIMES
    ]
    return Comparison(tuple(rows), ())
