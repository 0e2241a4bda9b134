"""What a fine-tuning method means in kernels: which parameters train, in which dtype, beside what.

Decides the `Adapter` of `Kernels` from a PeftSetup, and refuses what was not built.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from memcalc.engine.adapters import RANK
from memcalc.engine.aten.quantised import Quantised, writes_out
from memcalc.engine.kernels import Adapter, BlockKind, Kernels
from memcalc.engine.states import all_leaves, bytes_of_held
from memcalc.errors import ConfigError, NotInThisVersionError
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.peft import ADDS, PeftSetup
from memcalc.inputs.peft_names import target_linears
from memcalc.inputs.stacks import Stack
from memcalc.inputs.training import ResolvedSetup
from memcalc.inputs.weights import load_weights

if TYPE_CHECKING:
    from memcalc.engine.plan import Plan

#: Families whose linears are classes of their own, or embeddings with linears outside the blocks.
_OWN_LINEARS = ("gpt2", "openai-gpt", "falcon", "opt", "t5", "mt5", "bert")
#: Families whose linears keep their weights as (in, out).
_CONV1D = ("gpt2", "openai-gpt")
#: Stacks whose code takes adapters.
STACKS = ("hf",)


def with_adapter(kernels: Kernels, resolved: ResolvedSetup, stack: Stack) -> Kernels:
    """The kernels of a setup with its fine-tuning method. Raises where that was not built."""
    peft = resolved.setup.peft
    if peft is None:
        return kernels
    if stack.name not in STACKS:
        raise NotInThisVersionError(
            f"peft: on stack {stack.name} it is not in this version; valid: {', '.join(STACKS)}"
        )
    if kernels.compiled or kernels.fp8_linear:
        raise NotInThisVersionError("peft: with compile or fp8 it is not in this version")
    if resolved.setup.precision == "bf16-master":
        raise NotInThisVersionError("peft: with bf16-master it is not in this version; valid: bf16")
    kernels = kernels._replace(param_dtype=_base_dtype(peft, kernels))
    return kernels._replace(adapter=_adapter(peft, resolved, kernels))


def _base_dtype(peft: PeftSetup, kernels: Kernels) -> str:
    """The dtype of the model's own weights: stated, or the precision's. Raises ConfigError."""
    if peft.weights in (None, kernels.param_dtype) or peft.packed:
        return kernels.param_dtype
    if not kernels.autocast or peft.weights != kernels.compute_dtype:
        raise ConfigError(
            f"weights: got {peft.weights} beside weights in {kernels.param_dtype} and products in "
            f"{kernels.compute_dtype}; rule: autocast to the weights' dtype; nearest valid: --precision "
            f"{peft.weights if peft.weights == 'fp32' else f'{peft.weights}-mixed'}"
        )
    if peft.method not in ADDS:
        raise NotInThisVersionError(
            f"weights: {peft.weights} under autocast with peft {peft.method} is not in this version"
        )
    return kernels.compute_dtype


def _adapter(peft: PeftSetup, resolved: ResolvedSetup, kernels: Kernels) -> Adapter:
    config, recomputes = resolved.config, resolved.setup.recompute == "full"
    if peft.method == "dora":
        _check_dora(peft, config)
    if peft.method in ADDS:
        return Adapter(
            method=peft.method,
            targets=frozenset(target_linears(config, peft.targets, peft.method)),
            dtype=peft.dtype or "fp32",
            dropout=peft.dropout > 0,
            input_gradients=recomputes,
            quantised=_quantised(peft, resolved, kernels),
        )
    if peft.layers is not None and peft.layers > config.num_hidden_layers:
        raise ConfigError(
            f"peft: got freeze:{peft.layers}; rule: at most the {config.num_hidden_layers} layers of "
            f"{config.name}"
        )
    if peft.method == "bitfit" and not _has_bias(resolved):
        raise ConfigError(
            f"peft: got bitfit; rule: a model with biases, and {config.name} has none; valid: lora"
        )
    targets = target_linears(config, peft.targets) if peft.targets else ()
    return Adapter(method=peft.method, parts=frozenset(targets), input_gradients=recomputes)


def _check_dora(peft: PeftSetup, config: ModelConfig) -> None:
    """Raise where PEFT takes another path than the one described."""
    if peft.packed:
        raise NotInThisVersionError(
            f"peft: dora beside weights in {peft.packed} is not in this version; valid: qlora"
        )
    if peft.dropout and config.model_type in _CONV1D:
        raise NotInThisVersionError(
            f"peft: dora with dropout on {config.model_type}'s transposed weights is not in this version"
        )


def _quantised(peft: PeftSetup, resolved: ResolvedSetup, kernels: Kernels) -> Quantised | None:
    """How the base's linears are packed; what is not of bitsandbytes is refused."""
    if peft.packed is None:
        return None
    fmt, config = load_weights(peft.packed), resolved.config
    if fmt.kernel not in ("dequantise", "int8"):
        raise NotInThisVersionError(
            f"weights: {fmt.name} under adapters is not in this version; valid: nf4, nf4-plain, fp4, "
            "fp4-plain, int8"
        )
    if config.model_type in _OWN_LINEARS or config.moe is not None:
        raise NotInThisVersionError(
            f"weights: {fmt.name} of {config.model_type} under adapters is not in this version"
        )
    if kernels.compute_dtype == "fp32":
        raise ConfigError(
            f"weights: got {fmt.name} with {resolved.setup.precision}; rule: products in 16 bits; "
            "nearest valid: --precision bf16-mixed"
        )
    if fmt.kernel == "int8":
        return Quantised(8)
    packing = fmt.packing(dict(fmt.roles)["linear"])
    nested = any(part.name == "nested_absmax" for part in packing.parts)
    return Quantised(4, nested, writes_out(resolved.tokens), kernels.compute_dtype)


def with_packed_base(plan: Plan) -> Plan:
    """The plan with the bytes its packed weights take. Raises ConfigError as `weights_of_plan`."""
    peft = plan.resolved.setup.peft
    if peft is None or peft.packed is None:
        return plan
    from memcalc.engine.packed_base import packed_base  # which needs plans

    return plan._replace(strategy=packed_base(plan, load_weights(peft.packed)))


def _has_bias(resolved: ResolvedSetup) -> bool:
    config = resolved.config
    norms = config.norm_type == "layernorm" and config.norm_bias
    linears = (config.attention_bias, config.attention_output_bias, config.mlp_bias)
    return norms or any(linears)


def rank_values(resolved: ResolvedSetup) -> Mapping[str, int]:
    """The dims that a method adds."""
    peft = resolved.setup.peft
    return {RANK: peft.low_rank} if peft is not None and peft.low_rank else {}


def training_kinds(
    resolved: ResolvedSetup, kinds: tuple[BlockKind, ...], first: int = 0
) -> tuple[BlockKind, ...]:
    """The kinds of blocks, with those of freeze:N that do not train marked."""
    peft = resolved.setup.peft
    if peft is None or peft.layers is None:
        return kinds
    begin = resolved.config.num_hidden_layers - peft.layers
    return tuple(kind._replace(trains=first + number >= begin) for number, kind in enumerate(kinds))


def adapter_file_bytes(plan: Plan) -> int | None:
    """Bytes of the tensors that a method adds to the model, which a file beside it holds."""
    if plan.kernels.adapter is None or plan.kernels.adapter.method not in ADDS:
        return None
    structure, runs = plan.structure(plan.keeps_gradients)
    return sum(
        bytes_of_held(leaf, plan.values)
        for leaf in all_leaves(structure, runs)
        if leaf.requires_grad
    )


def check_layout(resolved: ResolvedSetup, parallel: ParallelPlan) -> None:
    """Raise where a method cannot be divided over GPUs yet."""
    if resolved.setup.peft is None:
        return
    if not parallel.is_single:
        raise NotInThisVersionError(
            "peft: on several GPUs it is not in this version; valid: one GPU"
        )
    if resolved.setup.optimizer_in_backward:
        raise NotInThisVersionError("peft: with optimizer_in_backward it is not in this version")
