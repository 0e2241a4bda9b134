"""verify: measure a plan, count its FLOPs, and hold its estimate against both.

After the measurement the model is built again for what would disturb it: counting FLOPs, times of
operators. What is known to differ on this device or release is listed before the comparison, with its
cause. Checked by: harness/test_verify.py, cli/test_verify.py.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from typing import Any

import torch

from memcalc.engine.memory import step_memory
from memcalc.engine.plan import Plan
from memcalc.harness.calibration.microbench_step import phase_times
from memcalc.harness.comparison import Difference, compare
from memcalc.harness.device import pick_device
from memcalc.harness.failures import described, first_line, is_out_of_memory
from memcalc.harness.measure import MeasureOptions, measure, settings
from memcalc.harness.measured_run import Progress
from memcalc.harness.op_comparison import with_predictions
from memcalc.harness.step import TrainingStep
from memcalc.harness.watch.flop_count import counted_flops
from memcalc.harness.watch.growth import growth
from memcalc.harness.watch.op_times import op_times
from memcalc.harness.watch.tensors import state_bytes

_TENSOR_ROWS = (
    "saved for backward", "peak in forward", "peak in loss", "peak in backward",
    "peak in optimizer", "peak requested",
)  # fmt: skip


def verify(
    plan: Plan,
    estimate: Mapping[str, Any],
    options: MeasureOptions,
    ops: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The measurement's record with counted FLOPs, the estimate and the comparison in it.

    estimate: of the same plan, as JSON. ops: measure the time of every operator as well.
    """
    record = measure(plan, options, progress)
    record["kind"] = "verify"
    record["estimate"] = {
        name: estimate[name] for name in ("memory", "time", "assumptions", "notes")
    }
    if record["status"] != "ok":
        return record
    try:
        with settings(plan, options, pick_device(options.device)):
            _more(plan, record, options, ops)
    except (Exception, KeyboardInterrupt) as error:  # what was measured stays
        stopped = isinstance(error, KeyboardInterrupt)
        record["notes"].append(f"after the measurement: {first_line(error)}")
        if stopped or not is_out_of_memory(error):
            record["status"] = "interrupted" if stopped else "failed"
            record["error"] = described(error, "counting", None)
    listed = differences(plan, record)
    record["comparison"] = compare(estimate, record, listed, _watched(plan, estimate)).plain()
    return record


def _of_compiled(step: TrainingStep) -> dict[str, Any]:
    """States, and what a forward leaves: all of a compiled step that needs no tracker."""
    step.micro_batch(lambda name: None, False)
    states = state_bytes(step)
    step.clear_gradients()
    kept = growth(lambda: step.model(step.ids, step.labels), step.device)
    return {"states": states, "saved_for_backward_bytes": kept.end_bytes}


def _watched(plan: Plan, estimate: Mapping[str, Any]) -> dict[str, Any]:
    """The estimate's peaks as the storage tracker must see them: what the mode adds, added."""
    plain, seen = (
        step_memory(plan._replace(kernels=plan.kernels._replace(watched=watched)))
        for watched in (False, True)
    )
    memory = estimate["memory"]
    more = {name: seen.phases[name] - size for name, size in plain.phases.items()}
    peak = "peak_requested_bytes"
    return {
        "phases": {name: size + more[name] for name, size in memory["phases"].items()},
        peak: memory[peak] + seen.peak_bytes - plain.peak_bytes,
    }


def _more(plan: Plan, record: dict[str, Any], options: MeasureOptions, ops: bool) -> None:
    """Counted FLOPs and times of operators, on a model built anew."""
    step = TrainingStep(plan, pick_device(options.device), options.seed)
    step.run()
    record["time"]["phases"] = phase_times(step)
    record["counted_flops"] = counted_flops(step)
    if plan.kernels.compiled:
        record["memory"] |= _of_compiled(step)
    if ops:
        measured = [time._asdict() for time in op_times(step)]
        accum = plan.resolved.grad_accum_steps
        record["ops"] = with_predictions(measured, record["estimate"]["time"], accum)
    del step
    gc.collect()


def differences(plan: Plan, record: Mapping[str, Any]) -> list[Difference]:
    """What is known to differ from the estimate on this device and release, with its cause."""
    found = []
    setup, kernels = plan.resolved.setup, plan.kernels
    if kernels.compiled:
        found.append(Difference(
            (*_TENSOR_ROWS[1:], "executed FLOPs"),
            "compiled code allocates out of the tracker's sight; saved bytes are read off the allocator",
        ))  # fmt: skip
    if kernels.cuda_graphs:
        found.append(Difference(
            ("asked for", "peak allocated", "peak reserved", "driver-used"),
            "CUDA graphs keep memory pools of their own, which are not estimated",
        ))  # fmt: skip
    if plan.optimizer.in_backward:
        found.append(Difference(
            ("backward", "optimizer"), "the optimizer steps inside backward, whose time holds both"
        ))  # fmt: skip
    if kernels.fp8_linear:
        found.append(Difference(("executed FLOPs",), "torch's counter does not know fp8 products"))
    if plan.config.moe is not None and setup.imbalance != 1.0:
        found.append(Difference(
            (*_TENSOR_ROWS, "executed FLOPs"),
            "tokens go where the router sends them: an imbalance cannot be imposed",
        ))  # fmt: skip
    if record["device"]["type"] == "cpu" and setup.optimizer == "adafactor":
        found.append(Difference(
            ("peak in optimizer", "peak requested"),
            "Adafactor's scalars lie in host memory, here the device's: up to 12 bytes",
        ))  # fmt: skip
    fused = kernels.norm == "fused" and plan.config.norm_type == "rmsnorm"
    on_gpu = record["device"]["type"] == "cuda"
    if fused and on_gpu and not hasattr(torch.ops.aten, "_fused_rms_norm"):
        found.append(Difference(
            _TENSOR_ROWS, f"torch {torch.__version__} has no fused RMSNorm; try --set kernels.norm=hand"
        ))  # fmt: skip
    return found
