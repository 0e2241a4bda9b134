"""What a fine-tuning method means in kernels: which parameters train, in which dtype, beside what.

Decides the `Adapter` of `Kernels` from a PeftSetup, and refuses what was not built.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from memcalc.engine.adapters.bottleneck import WIDTH
from memcalc.engine.adapters.limits import check_method, check_packed, check_plain
from memcalc.engine.adapters.prompt import FEEDS_EMBEDDING, INSIDE, REAL, TABLES, TOKENS
from memcalc.engine.adapters.svd import IMPORTANCE, RANK
from memcalc.engine.aten.quantised import Quantised, writes_out
from memcalc.engine.dtypes import ITEMSIZE
from memcalc.engine.encoders import ALIGNED
from memcalc.engine.kernels import Adapter, BlockKind, Kernels
from memcalc.engine.parallel.data.tuned import check_tuned
from memcalc.engine.states import all_leaves, bytes_of_held
from memcalc.errors import ConfigError, NotInThisVersionError
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.peft import ADDS, VIRTUAL, PeftSetup
from memcalc.inputs.peft_names import target_linears
from memcalc.inputs.stacks import Stack
from memcalc.inputs.training import ResolvedSetup
from memcalc.inputs.weights import load_weights

if TYPE_CHECKING:
    from memcalc.engine.plan import Plan

#: Stacks whose code takes adapters.
STACKS = ("hf", "deepspeed", "deepspeed-0.8", "torch")


def with_adapter(kernels: Kernels, resolved: ResolvedSetup, stack: Stack) -> Kernels:
    """The kernels of a setup with its fine-tuning method. Raises where that was not built."""
    peft = resolved.setup.peft
    if peft is None:
        return kernels
    if stack.name not in STACKS:
        raise NotInThisVersionError(
            f"peft: on stack {stack.name} it is not in this version; valid: {', '.join(STACKS)}"
        )
    if stack.name == "torch":
        check_plain(peft)
    if kernels.compiled or kernels.fp8_linear:
        raise NotInThisVersionError("peft: with compile or fp8 it is not in this version")
    if resolved.setup.precision == "bf16-master":
        raise NotInThisVersionError("peft: with bf16-master it is not in this version; valid: bf16")
    kernels = kernels._replace(param_dtype=_base_dtype(peft, kernels))
    kernels = kernels._replace(adapter=_adapter(peft, resolved, kernels))
    return _under_mask(kernels, resolved, peft) if peft.method == "prefix" else kernels


def _under_mask(kernels: Kernels, resolved: ResolvedSetup, peft: PeftSetup) -> Kernels:
    """A prefix makes more keys than queries: transformers builds a mask, which no flash kernel takes."""
    if kernels.attention == "eager":
        return kernels
    unaligned = (resolved.seq_len + peft.tokens) % ALIGNED != 0
    return kernels._replace(attention="efficient", pads_bias=(unaligned, unaligned))


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
    if peft.method not in (*ADDS, "freeze"):
        raise NotInThisVersionError(
            f"weights: {peft.weights} under autocast with peft {peft.method} is not in this version"
        )
    return kernels.compute_dtype


def _adapter(peft: PeftSetup, resolved: ResolvedSetup, kernels: Kernels) -> Adapter:
    config, recomputes = resolved.config, resolved.setup.recompute == "full"
    check_method(peft, resolved, kernels)
    plain = Adapter(
        method=peft.method,
        dtype=peft.dtype or "fp32",
        dropout=peft.dropout > 0,
        input_gradients=recomputes,
        quantised=_quantised(peft, resolved, kernels),
    )
    if peft.method in VIRTUAL:
        return plain._replace(projects=peft.projection)
    if peft.method == "adapter":
        return plain._replace(kind=peft.bottleneck_kind, dtype=peft.dtype or kernels.param_dtype)
    if peft.method in ADDS:
        return plain._replace(
            targets=_in_code(target_linears(config, peft.targets, peft.method), config, kernels)
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
    return plain._replace(parts=_in_code(targets, config, kernels))


def _in_code(targets: Iterable[str], config: ModelConfig, kernels: Kernels) -> frozenset[str]:
    """The linears that these are in the code that runs: the plain decoder has its own for fused ones."""
    if kernels.hf:
        return frozenset(targets)
    apart: dict[str, tuple[str, ...]] = {}
    if not config.fused_qkv:
        apart["qkv_proj"] = ("q_proj", "k_proj", "v_proj")
    if not kernels.traits.fused_gate_up:
        apart["gate_up_proj"] = ("gate_proj", "up_proj")
    return frozenset(name for target in targets for name in apart.get(target, (target,)))


def _quantised(peft: PeftSetup, resolved: ResolvedSetup, kernels: Kernels) -> Quantised | None:
    """How the base's linears are packed; what is not of bitsandbytes is refused."""
    if peft.packed is None:
        return None
    fmt = load_weights(peft.packed)
    check_packed(fmt, resolved.config, resolved.setup.precision, kernels.compute_dtype)
    if fmt.kernel == "int8":
        return Quantised(8)
    packing = fmt.packing(dict(fmt.roles)["linear"])
    nested = any(part.name == "nested_absmax" for part in packing.parts)
    added = peft.tokens if peft.method in FEEDS_EMBEDDING else 0
    rows = resolved.tokens + resolved.micro_batch_size * added
    whole = writes_out(rows) or not kernels.hf  # the plain decoder has no kernel for few rows
    return Quantised(4, nested, whole, kernels.compute_dtype)


def with_packed_base(plan: Plan) -> Plan:
    """The plan with the bytes its packed weights take. Raises ConfigError as `weights_of_plan`."""
    peft = plan.resolved.setup.peft
    if peft is None or peft.packed is None:
        return plan
    from memcalc.engine.adapters.packed_base import packed_base  # which needs plans

    return plan._replace(strategy=packed_base(plan, load_weights(peft.packed)))


def _has_bias(resolved: ResolvedSetup) -> bool:
    config = resolved.config
    norms = config.norm_type == "layernorm" and config.norm_bias
    linears = (config.attention_bias, config.attention_output_bias, config.mlp_bias)
    return norms or any(linears)


def rank_values(resolved: ResolvedSetup) -> Mapping[str, int]:
    """The dims that a method adds, and those it changes."""
    peft = resolved.setup.peft
    if peft is None:
        return {}
    if peft.method == "adapter":
        return {WIDTH: peft.bottleneck(resolved.config.hidden_size)}
    if peft.method in VIRTUAL:
        return _virtual_values(peft, resolved)
    return {RANK: peft.low_rank} if peft.low_rank else {}


def _virtual_values(peft: PeftSetup, resolved: ResolvedSetup) -> dict[str, int]:
    """Virtual tokens are positions of every block, or with prefix tuning keys beside a block's own."""
    config, tokens, s = resolved.config, peft.tokens, resolved.seq_len
    if peft.method != "prefix":
        width = peft.encoder_width or config.hidden_size
        inside = {INSIDE: width} if peft.method == "p-tuning" else {}
        return {**inside, TOKENS: tokens, REAL: s, "s": s + tokens}
    width = peft.encoder_width or config.num_key_value_heads * config.head_dim
    return {
        **({INSIDE: width} if peft.projection else {}), TOKENS: tokens,
        TABLES: 2 * config.num_hidden_layers, "s_kv": s + tokens, "w_kv": s + tokens,
    }  # fmt: skip


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
    """Bytes of the tensors that a method adds to the model, which a file beside it holds.

    Of virtual tokens PEFT saves what their encoder makes of them, in fp32, and no encoder.
    """
    adapter, values = plan.kernels.adapter, plan.values
    if adapter is None or adapter.method not in ADDS:
        return None
    if adapter.method in VIRTUAL:
        rows = values["h"]
        if adapter.method == "prefix":
            heads = "a" if plan.kernels.traits.block == "falcon" else "k"
            rows = values[TABLES] * values[heads] * values["d"]
        return values[TOKENS] * rows * ITEMSIZE["fp32"]
    structure, runs = plan.structure(plan.keeps_gradients)
    return sum(
        bytes_of_held(leaf, values) for leaf in all_leaves(structure, runs) if leaf.requires_grad
    )


def check_layout(resolved: ResolvedSetup, parallel: ParallelPlan) -> None:
    """Raise where a method cannot be divided over GPUs so."""
    check_tuned(resolved, parallel)
    peft = resolved.setup.peft
    if peft is not None and peft.method in (*VIRTUAL, "adalora") and not parallel.is_single:
        raise NotInThisVersionError(
            f"peft: {peft.method} on several GPUs is not in this version; nearest valid: lora"
        )


def builds_masks(kernels: Kernels) -> bool:
    """Whether masks are made for blocks, of which those with a window have one of their own."""
    prefix = kernels.adapter is not None and kernels.adapter.method == "prefix"
    return kernels.attention == "eager" or prefix


def scores_of(kernels: Kernels) -> int:
    """Tensors of importance that a method keeps for each parameter that trains."""
    is_scored = kernels.adapter is not None and kernels.adapter.method == "adalora"
    return IMPORTANCE if is_scored else 0


def adapter_notes(kernels: Kernels) -> list[str]:
    """What a reader must know of a method."""
    adapter = kernels.adapter
    if adapter is None:
        return []
    said = {
        "attention: efficient: a prefix has more keys than queries, so transformers builds a mask, and no "
        "flash kernel takes one": adapter.method == "prefix" and kernels.attention == "efficient",
        "adalora: the importance of every adapter, three tensors as large, is counted beside the "
        "optimizer's states (PEFT's update_and_allocate)": adapter.method == "adalora",
        "bottleneck adapters by their published definitions; norms stay frozen": (
            adapter.method == "adapter"
        ),
        "packed matrices take no gradient: those that train are held in "
        f"{'fp32' if kernels.autocast else kernels.param_dtype}, only frozen ones are packed": (
            adapter.method == "freeze" and adapter.quantised is not None
        ),
    }
    return [note for note, applies in said.items() if applies]
