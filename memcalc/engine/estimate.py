"""estimate: from what the user states to the four numbers, their breakdown and a verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, NamedTuple

from memcalc.engine.allocator import AllocatorResult, simulate
from memcalc.engine.blocks.compiled_limits import ASSUMPTIONS
from memcalc.engine.flops import step_flops
from memcalc.engine.memory import StepMemory, step_memory
from memcalc.engine.plan import Plan, plan_of
from memcalc.engine.program import Stream, training_program
from memcalc.engine.results import (
    Breakdown,
    Estimate,
    MemoryEstimate,
    ModelSummary,
    TimeEstimate,
)
from memcalc.errors import ConfigError
from memcalc.inputs.hardware import Gpu, context_bytes, cublas_workspace_bytes, load_gpu
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.models import load_model
from memcalc.inputs.stacks import Stack, load_stack
from memcalc.inputs.training import TrainingSetup
from memcalc.units import MIB

#: What needs more on one GPU is a typing error; the allocator's addresses end at 2^53.
MAX_BYTES = 1 << 50
#: A matmul handle is made per thread: the forward's and autograd's. Not yet measured.
_WORKSPACES = 2
_DEFAULT_WORKSPACE_BYTES = 32 * MIB
_DEFAULT_CONTEXT_BYTES = 550 * MIB
#: Width of the context's uncertainty: the smallest measured, and what kernels add as they load.
_CONTEXT_LOW_BYTES = 426 * MIB
_KERNEL_IMAGES_BYTES = 300 * MIB


class Device(NamedTuple):
    """The GPU side of an estimate, with what each figure rests on."""

    gpu: Gpu | None
    usable_bytes: int | None
    workspace_bytes: int
    context_bytes: int
    notes: tuple[str, ...]
    assumptions: tuple[str, ...]


def device_of(
    gpu: Gpu | str | None, gpu_memory_bytes: int | None = None, reserve_bytes: int = 0
) -> Device:
    """Resolve a GPU by name; its memory may be stated, and part of it set aside."""
    if gpu is None:
        usable = None if gpu_memory_bytes is None else gpu_memory_bytes - reserve_bytes
        said = "no GPU named: matmul workspace and CUDA context of a Hopper card assumed"
        return Device(
            None, usable, _DEFAULT_WORKSPACE_BYTES, _DEFAULT_CONTEXT_BYTES, (), (said,)
        )  # fmt: skip
    notes: list[str] = []
    if isinstance(gpu, str):
        gpu, notes = load_gpu(gpu)
    context, source, verified = context_bytes(gpu)
    total = gpu.total_bytes if gpu_memory_bytes is None else gpu_memory_bytes
    basis = gpu.total_bytes_source if gpu_memory_bytes is None else "as stated"
    assumptions = (
        f"usable memory of {gpu.name}: {basis}",
        f"CUDA context: {context // MIB} MiB, {source}" + ("" if verified else " (not verified)"),
    )
    return Device(
        gpu, total - reserve_bytes, cublas_workspace_bytes(gpu), context, tuple(notes), assumptions
    )  # fmt: skip


def estimate(
    model: ModelConfig | str,
    setup: TrainingSetup | None = None,
    *,
    gpu: Gpu | str | Device | None = None,
    kernels: Mapping[str, Any] | None = None,
    allocator: bool = True,
) -> Estimate:
    """Memory of one training step of a model on one GPU.

    model: a ModelConfig, a profile's name, or a path to a config.json. kernels: overrides of the
    stack's choices, e.g. {"norm": "hand"}. allocator: simulate PyTorch's caching allocator; without
    it reserved and driver-used bytes are None and allocated leaves rounding out.
    Raises ConfigError when the inputs cannot be used. "Does not fit" is a result, not an error.
    Checked by: oracle/test_step_peak.py, cli/test_estimate.py, benchmarks/engine_speed.py.
    """
    config = load_model(model) if isinstance(model, str) else model
    setup = setup or TrainingSetup()
    stack = load_stack(setup.code)
    device = gpu if isinstance(gpu, Device) else device_of(gpu)
    plan = plan_of(config, setup, kernels)
    return _estimate(plan, stack, device, allocator)


def _estimate(plan: Plan, stack: Stack, device: Device, allocator: bool) -> Estimate:
    step = step_memory(plan)
    if step.peak_bytes > MAX_BYTES:
        raise ConfigError(
            f"micro-batch x seq: got {plan.resolved.micro_batch_size} x {plan.resolved.seq_len}, "
            f"which needs {step.peak_bytes} bytes on one GPU; rule: at most 2^50"
        )
    workspaces = (device.workspace_bytes,) * _WORKSPACES
    stream = training_program(plan, workspaces) if allocator else None
    simulated = simulate(stream.events, stream.sizes) if stream else None
    memory = _memory(step, plan, device, simulated)
    fits = _fits(memory, device, stream)
    verdict = None
    if fits is not None:
        tight = memory.high_bytes is not None and memory.high_bytes > (memory.usable_bytes or 0)
        verdict = "does-not-fit" if not fits else "tight" if tight else "fits"
    flops = step_flops(plan)
    return Estimate(
        model=ModelSummary(
            name=plan.config.name,
            model_type=plan.config.model_type,
            parameters=step.states.parameters,
            active_parameters=step.states.active_parameters,
            num_hidden_layers=plan.config.num_hidden_layers,
            parameter_tensors=step.states.tensors,
        ),
        setup=_setup_dict(plan, stack, device),
        memory=memory,
        time=TimeEstimate(
            model_flops_per_token=flops.model_per_token,
            model_flops_causal_per_token=flops.model_causal_per_token,
            executed_flops_per_token=flops.executed_per_token,
            executed_flops=flops.executed,
        ),
        fits=fits,
        verdict=verdict,
        assumptions=(*_assumptions(plan, stack, device),),
        notes=(*device.notes, *plan.resolved.notes, *plan.notes),
        advice=(),
    )


def _memory(
    step: StepMemory, plan: Plan, device: Device, simulated: AllocatorResult | None
) -> MemoryEstimate:
    workspace = device.workspace_bytes * _WORKSPACES
    requested = step.peak_bytes
    allocated = simulated.peak_allocated_bytes if simulated else requested + workspace
    reserved = simulated.peak_reserved_bytes if simulated else None
    used = None if reserved is None else reserved + device.context_bytes
    low = high = None
    if used is not None:
        low = allocated - device.workspace_bytes + min(device.context_bytes, _CONTEXT_LOW_BYTES)
        high = used + _KERNEL_IMAGES_BYTES + _attention_scratch(plan)
    usable = device.usable_bytes
    held = step.states
    return MemoryEstimate(
        peak_requested_bytes=requested,
        peak_allocated_bytes=allocated,
        peak_reserved_bytes=reserved,
        device_used_bytes=used,
        usable_bytes=usable,
        headroom_bytes=None if usable is None or used is None else usable - used,
        low_bytes=low,
        high_bytes=high,
        peak_at=step.peak.name,
        peak_primitive=step.peak.primitive,
        breakdown=Breakdown(
            **step.breakdown, workspace=workspace, rounding=allocated - requested - workspace
        ),
        reserved_overhead_bytes=None if reserved is None else reserved - allocated,
        context_bytes=device.context_bytes,
        communication_bytes=0,
        phases=step.phases,
        phase_peaks_at={name: instant.name for name, instant in step.instants.items()},
        states={
            "parameters": held.parameter_bytes,
            "gradients": held.gradient_bytes,
            "optimizer": held.optimizer_bytes,
            "master": held.master_bytes,
        },
        saved_for_backward_bytes=step.saved_bytes,
        saved_per_layer_bytes=step.saved_per_layer_bytes,
        host_bytes=0,
    )


def _attention_scratch(plan: Plan) -> int:
    """What a fused attention backward may allocate inside: fp32 dQ, and dK, dV a query head each.

    Expected from the kernels' source, not measured, so it widens the band and is not in the estimate.
    """
    if plan.kernels.attention == "eager":
        return 0
    config = plan.config
    wide = plan.resolved.tokens * config.num_attention_heads * config.head_dim
    grouped = config.num_key_value_heads < config.num_attention_heads
    return wide * 4 + (wide * 2 * 2 if grouped else 0)


def _fits(memory: MemoryEstimate, device: Device, stream: Stream | None) -> bool | None:
    """Whether the process fits, the allocator releasing cached blocks where that helps."""
    usable = memory.usable_bytes
    if usable is None:
        return None
    if memory.peak_allocated_bytes + device.context_bytes > usable:
        return False
    if stream is None or memory.device_used_bytes is None or memory.device_used_bytes <= usable:
        return True
    capacity = usable - device.context_bytes
    return not simulate(stream.events, stream.sizes, capacity).out_of_memory


def _assumptions(plan: Plan, stack: Stack, device: Device) -> list[str]:
    setup = plan.resolved.setup
    said = [
        f"stack {stack.name}: {stack.verified_against}",
        "second and later optimizer steps; the first may reserve more",
        f"matmul workspaces: {_WORKSPACES} of {device.workspace_bytes / MIB:.3g} MiB "
        "(forward and autograd threads)",
        *device.assumptions,
        "band: open figures of context, workspace and attention scratch, not yet measured runs",
    ]
    if setup.precision == "tf32":
        said.append("tf32 is stored as 4 bytes an element (19 significant bits in 32)")
    if plan.kernels.compiled:
        said += ASSUMPTIONS
    if plan.kernels.norm == "fused" and plan.config.norm_type == "rmsnorm":
        said.append("RMSNorm runs as one fused kernel (F.rms_norm on CUDA)")
    return said


def _setup_dict(plan: Plan, stack: Stack, device: Device) -> dict[str, Any]:
    """Every resolved input, defaults filled in, with the hashes of the profiles used."""
    resolved = plan.resolved
    stated = asdict(resolved.setup)
    kernels = plan.kernels._asdict()
    traits = kernels.pop("traits")._asdict()
    return {
        **stated,
        "stack": resolved.setup.code,
        "seq_len": resolved.seq_len,
        "micro_batch_size": resolved.micro_batch_size,
        "grad_accum_steps": resolved.grad_accum_steps,
        "global_batch": resolved.micro_batch_size * resolved.grad_accum_steps,
        "optimizer_impl": resolved.optimizer_impl,
        "loss": plan.kernels.loss,
        "attention": plan.kernels.attention,
        "num_layers": resolved.config.num_hidden_layers,
        "gpus": 1,
        "gpu": None if device.gpu is None else device.gpu.slug,
        "kernels": kernels,
        "traits": traits,
        "profile_hashes": {
            "stack": stack.profile_hash,
            "gpu": None if device.gpu is None else device.gpu.profile_hash,
        },
        "dims": dict(plan.values),
    }


def with_advice(result: Estimate, advice: list[str]) -> Estimate:
    """The same estimate with advice filled in."""
    return replace(result, advice=tuple(advice))
