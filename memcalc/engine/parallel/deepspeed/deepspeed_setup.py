"""What a setup means on DeepSpeed: dtypes, optimizer, and what it does not run.

bf16-mixed and fp16-mixed are DeepSpeed's bf16 and fp16: parameters of 16 bit, fp32 copies in the
optimizer, no autocast. Source: DeepSpeed 0.18.2, runtime/engine.py, runtime/zero/utils.py
(ZERO_SUPPORTED_OPTIMIZERS). Checked by: unit/test_deepspeed.py.
"""

from __future__ import annotations

from memcalc.engine.kernels import Kernels
from memcalc.engine.optimizer import OptimizerPlan
from memcalc.errors import ConfigError
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.stacks import Stack, load_stack
from memcalc.inputs.training import ResolvedSetup, TrainingSetup

_DTYPES = {"fp32": "fp32", "bf16-mixed": "bf16", "bf16-master": "bf16", "fp16-mixed": "fp16"}
_OPTIMIZERS = ("adamw", "lion", "sgd", "momentum", "none")


def runs_deepspeed(stack: Stack) -> bool:
    """Whether a stack's states are DeepSpeed's."""
    return stack.parallel.get("states") == "deepspeed"


def deepspeed_kernels(kernels: Kernels, resolved: ResolvedSetup, stack: Stack) -> Kernels:
    """The kernels with DeepSpeed's dtypes. Raises ConfigError for what it does not run."""
    setup = resolved.setup
    if setup.precision not in _DTYPES:
        raise ConfigError(
            f"precision: got {setup.precision!r} on stack {stack.name}; valid: {', '.join(_DTYPES)}"
        )
    if setup.optimizer not in _OPTIMIZERS:
        raise ConfigError(
            f"optimizer: got {setup.optimizer!r} on stack {stack.name}; rule: one that runs on flat "
            f"fp32 parts; valid: {', '.join(_OPTIMIZERS)}"
        )
    if setup.optimizer_dtype not in (None, "fp32"):
        raise ConfigError(
            f"optimizer_dtype: got {setup.optimizer_dtype} on stack {stack.name}; valid: fp32"
        )
    if not setup.set_to_none:
        raise ConfigError(
            f"set_to_none: got false on stack {stack.name}; rule: DeepSpeed drops gradients itself"
        )
    dtype = _DTYPES[setup.precision]
    return kernels._replace(param_dtype=dtype, compute_dtype=dtype, autocast=False)


def in_one_dtype(kernels: Kernels, setup: TrainingSetup, stack: Stack) -> Kernels:
    """The kernels with adapters in the model's dtype where DeepSpeed casts the whole module.

    Raises ConfigError where a user wants another.
    """
    if kernels.adapter is None or setup.peft is None or not runs_deepspeed(stack):
        return kernels
    if setup.peft.dtype not in (None, kernels.param_dtype):
        raise ConfigError(
            f"lora_dtype: got {setup.peft.dtype} on stack {stack.name}; rule: DeepSpeed casts all; "
            f"nearest valid: {kernels.param_dtype}"
        )
    return kernels._replace(adapter=kernels.adapter._replace(dtype=kernels.param_dtype))


def deepspeed_optimizer(
    optimizer: OptimizerPlan, setup: TrainingSetup, kernels: Kernels, layout: ParallelPlan
) -> OptimizerPlan:
    """FusedAdam unless another implementation is stated; fp32 copies but where fp32 needs none."""
    if setup.optimizer == "adamw" and setup.optimizer_impl is None:
        optimizer = optimizer._replace(impl="multi_tensor")
    copies = kernels.param_dtype != "fp32" or layout.zero in (1, 2) or layout.offload != "none"
    return optimizer._replace(master=copies, widens_gradients=False)


def check_deepspeed(layout: ParallelPlan, stack: Stack) -> None:
    """Raise ConfigError for what this stack's ranks do not divide."""
    for name in ("tp", "pp", "cp", "ep"):
        degree = getattr(layout, name)
        if degree > 1:
            raise ConfigError(
                f"{name}: got {degree} on stack {stack.name}; rule: data parallelism (ZeRO) alone; "
                "valid: 1"
            )
    if layout.fsdp:
        raise ConfigError(f"fsdp: got true on stack {stack.name}; valid: --zero 3")
    for name in ("shard", "reshard"):
        if getattr(layout, name) is not None:
            raise ConfigError(
                f"{name}: got {getattr(layout, name)} on stack {stack.name}; rule: of fsdp"
            )


def deepspeed_notes(layout: ParallelPlan, hidden: int, stack: Stack) -> tuple[str, ...]:
    """What a reader must know of the buckets; nothing where their sizes were stated."""
    if not layout.zero or stack.parallel != load_stack(stack.name).parallel:
        return ()
    said = (
        "ZeRO's bucket sizes are DeepSpeed's defaults (reduce_bucket_size 5e8 elements); "
        f"the Hugging Face Trainer's auto would be {hidden**2:,}"
    )
    if layout.zero == 3:
        said += (
            f", stage3_prefetch_bucket_size {9 * hidden**2 // 10:,}, "
            f"stage3_param_persistence_threshold {10 * hidden:,}"
        )
    return (said,)
