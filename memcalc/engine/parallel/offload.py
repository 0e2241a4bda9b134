"""What may leave the GPU, by whose code runs: rules, and what the layout's words mean.

PyTorch: parameters, gradients and optimizer states of fully_shard together (CPUOffloadPolicy), or what
backward needs (torch.autograd.graph.save_on_cpu around the forward pass). DeepSpeed: optimizer states
with the gradients they need (ZeRO-Offload, stages 1 to 3), and parameters too (stage 3), to host memory
or to disks (ZeRO-Infinity, stage 3).
Source: PyTorch 2.13, torch/distributed/fsdp/_fully_shard/_fsdp_api.py (CPUOffloadPolicy),
torch/autograd/graph.py (save_on_cpu); DeepSpeed 0.18.2, runtime/zero/offload_config.py, stage3.py
(_configure_offloading). Checked by: unit/test_offload.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from memcalc.errors import ConfigError, NotInThisVersionError
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.stacks import Stack

if TYPE_CHECKING:
    from memcalc.engine.plan import Plan


def moves_states(layout: ParallelPlan) -> bool:
    """Whether optimizer states and gradients leave the GPU."""
    return layout.offload in ("optimizer", "params", "all")


def moves_parameters(layout: ParallelPlan) -> bool:
    """Whether parameters leave it too."""
    return layout.offload in ("params", "all")


def moves_activations(layout: ParallelPlan) -> bool:
    """Whether what forward saves for backward leaves it."""
    return layout.offload in ("activations", "all")


def resolve_offload(
    layout: ParallelPlan, plan: Plan, stack: Stack
) -> tuple[ParallelPlan, tuple[str, ...]]:
    """The layout with pin_memory filled in, and notes. Raises ConfigError for what does not exist."""
    if layout.offload == "none":
        _check_alone(layout)
        return layout, ()
    pin = layout.pin_memory
    if pin is None:
        pin = bool(stack.parallel.get("pin_memory", True))
    layout = replace(layout, pin_memory=pin)
    if stack.parallel.get("states") == "deepspeed":
        return layout, _deepspeed(layout, stack)
    return layout, _torch(layout, plan, stack)


def _check_alone(layout: ParallelPlan) -> None:
    if layout.offload_device != "cpu":
        raise ConfigError(
            f"offload_device: got {layout.offload_device} without offload; "
            "valid: --offload optimizer, params"
        )
    if layout.pin_memory is not None:
        raise ConfigError("pin_memory: got a value without offload; rule: of host memory")


def _deepspeed(layout: ParallelPlan, stack: Stack) -> tuple[str, ...]:
    notes = []
    if layout.offload == "activations":
        raise ConfigError(
            f"offload: got activations on stack {stack.name}; rule: DeepSpeed's cpu_checkpointing is "
            "of its own checkpoint function, which Hugging Face code does not call; "
            "valid: optimizer, params"
        )
    if moves_parameters(layout) and layout.zero != 3:
        raise ConfigError(
            f"offload: got {layout.offload} with zero {layout.zero}; rule: parameters leave the GPU "
            "in stage 3; valid: --zero 3, or --offload optimizer"
        )
    if layout.zero == 0:
        raise ConfigError("offload: got optimizer with zero 0; valid: --zero 1, 2, 3")
    if layout.offload_device == "nvme" and layout.zero != 3:
        raise ConfigError(
            f"offload_device: got nvme with zero {layout.zero}; rule: ZeRO-Infinity is stage 3; "
            "valid: --zero 3, or cpu"
        )
    if moves_parameters(layout):
        notes.append(
            "offload of parameters: DeepSpeed takes it beside the optimizer's offload only"
        )
    if layout.offload == "all":
        notes.append("offload all: activations stay on the GPU on this stack")
    notes.append("optimizer on the host: DeepSpeedCPUAdam; its step takes host time")
    return tuple(notes)


def _torch(layout: ParallelPlan, plan: Plan, stack: Stack) -> tuple[str, ...]:
    if layout.offload_device == "nvme":
        raise ConfigError(
            f"offload_device: got nvme on stack {stack.name}; valid: cpu, or stack deepspeed"
        )
    if layout.offload == "optimizer":
        raise ConfigError(
            f"offload: got optimizer on stack {stack.name}; rule: PyTorch moves parameters, gradients "
            "and optimizer states together; valid: params (with --fsdp), activations; or stack "
            "deepspeed"
        )
    if moves_parameters(layout) and layout.zero < 2:
        raise ConfigError(
            f"offload: got {layout.offload} with zero {layout.zero}; rule: CPUOffloadPolicy is of "
            "fully_shard; valid: --fsdp, or activations"
        )
    if layout.tp > 1 or layout.pp > 1:
        raise NotInThisVersionError(
            f"offload: with tp {layout.tp}, pp {layout.pp} it is not in this version; valid: 1, 1"
        )
    if moves_activations(layout):
        _check_activations(plan)
    notes = []
    if moves_parameters(layout):
        notes.append("CPUOffloadPolicy: the optimizer steps on the host, which takes host time")
    if moves_activations(layout):
        notes.append(
            "save_on_cpu around forward and loss: every tensor that a node saves is copied, weights "
            "among them, once for each node"
        )
    return tuple(notes)


def _check_activations(plan: Plan) -> None:
    """save_on_cpu was followed through the plain decoder's code and transformers'."""
    if plan.kernels.compiled or plan.kernels.traits.code != "plain":
        raise NotInThisVersionError(
            f"offload: activations on stack {plan.resolved.setup.code} are not in this version; "
            "valid: stack torch, hf"
        )
