"""The plan of a run on the device at hand: on a CPU, the CPU's kernels instead of a GPU's.

What a CPU computes differs where its kernels keep other tensors: LayerNorm's statistics, dropout's
masks, and RMSNorm, which is one kernel on CUDA and several operators elsewhere. An estimate that is
to be held against a CPU describes those. What the user set by hand stays. A plan alone needs no torch.
Checked by: harness/test_measure.py, harness/test_utilisation.py (profiles).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from memcalc.engine.device_side import Device, device_of
from memcalc.engine.make_plan import plan_of
from memcalc.engine.plan import Plan
from memcalc.errors import ConfigError
from memcalc.inputs.choose_rates import cpu_device
from memcalc.inputs.hardware import Gpu, load_gpu
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.stacks import load_stack
from memcalc.inputs.training import TrainingSetup

if TYPE_CHECKING:
    import torch

    from memcalc.engine.timing.time_estimate import TimeEstimate

#: How far a profile's memory may be from a device's: partitions of a GPU carry its name.
_SAME_MEMORY = 0.12
#: Stacks whose code is the harness's decoder.
_STACKS = ("torch", "torch-compile")


def local_kernels(
    config: ModelConfig, setup: TrainingSetup, kernels: Mapping[str, Any], device: str
) -> dict[str, Any]:
    """The kernel choices of a run on a kind of device ("cuda", "cpu"); those given win."""
    if device != "cpu":
        return dict(kernels)
    local: dict[str, Any] = {"device": "cpu"}
    fused = load_stack(setup.stack).choices.get("norm") == "fused"
    if config.norm_type == "rmsnorm" and fused:
        local["norm"] = "decomposed"
    return {**local, **kernels}


def local_plan(
    config: ModelConfig, setup: TrainingSetup, kernels: Mapping[str, Any], device: str
) -> Plan:
    """The plan of a model in a setup on a kind of device, its bytes as the storage tracker sees them.

    Raises ConfigError for attention kernels the device does not have. ALiBi's bias, which on CUDA
    only the memory-efficient kernel takes, runs eagerly on a CPU.
    """
    local = {**local_kernels(config, setup, kernels, device), "watched": True}
    plan = plan_of(config, setup, local)
    chosen = setup.attention == "efficient" or "attention" in kernels
    if device == "cpu" and plan.kernels.attention == "efficient" and not chosen:
        plan = plan_of(config, setup, {**local, "attention": "eager"})
        plan = plan._replace(notes=(*plan.notes, "attention: eager: a CPU kernel takes no bias"))
    _check(plan, device)
    return plan


def check_code(plan: Plan) -> None:
    """Raise ConfigError unless the stack's code is the harness's decoder."""
    stack = plan.resolved.setup.code
    if stack not in _STACKS:
        raise ConfigError(f"stack: got {stack!r}, whose code is its own; valid to run: torch")


def local_device(device: torch.device) -> Device:
    """The GPU side of an estimate for the device at hand; on a CPU there is none."""
    return device_of(*local_gpu(device)) if device.type == "cuda" else device_of(None)


def local_gpu(device: torch.device) -> tuple[Gpu | None, int]:
    """The profile of a CUDA device and the bytes torch sees of it."""
    from memcalc.harness.device import device_facts

    facts = device_facts(device)
    total = int(facts["total_bytes"])
    return profile_of(facts["name"], total), total


def timed_on_cpu(
    plan: Plan, calibration: str, threads: int | None = None
) -> tuple[TimeEstimate, list[str]]:
    """Time of a step on this machine's CPU by a calibration measured on it, and notes.

    threads: the run's, None for torch's. Without such a calibration the times are None.
    """
    import torch

    from memcalc.engine.timing.answer import time_estimate
    from memcalc.harness.host import cpu_facts

    count = threads or torch.get_num_threads()
    found = cpu_device(cpu_facts()["name"], count, calibration)
    device = device_of(None)
    if found is None:
        time, _ = time_estimate(plan, device)
        return time, [f"no times: no calibration of this CPU with {count} threads is known"]
    gpu, path = found
    return time_estimate(plan, device._replace(gpu=gpu, calibration=str(path)))


def profile_of(name: str, total_bytes: int | None) -> Gpu | None:
    """The profile of a GPU by the driver's name for it; None where no name or no memory agrees."""
    try:
        gpu, _ = load_gpu(name)
    except ConfigError:
        return None
    if total_bytes is None or abs(total_bytes / gpu.total_bytes - 1) > _SAME_MEMORY:
        return None
    return gpu


def _check(plan: Plan, device: str) -> None:
    kernel, meant = plan.kernels.attention, plan.kernels.device
    if kernel == "eager":
        return
    if device == "cpu" and kernel != "flash":
        raise ConfigError(f"attention: got {kernel!r}, a CUDA kernel; valid on a CPU: flash, eager")
    if meant != device:
        raise ConfigError(
            f"kernels.device: got {meant!r} on {device}; rule: its attention kernel does not run "
            f"there; valid: {device}, or --attention eager"
        )
