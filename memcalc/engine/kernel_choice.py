"""Which kernels a setup runs on a stack: what precisions, attention and loss options mean.

The only place that knows what a precision or a stack's name means in dtypes and kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from memcalc.engine.adapters.choice import adapter_notes, with_adapter
from memcalc.engine.blocks.compiled_limits import LONG_ROW, check_compiled
from memcalc.engine.blocks.layer_limits import check_layer_code, check_litgpt
from memcalc.engine.blocks.litgpt_loss import litgpt_chunks
from memcalc.engine.encoders import check_code, padded_rows
from memcalc.engine.families import attention_for, traits_for
from memcalc.engine.kernels import Kernels, Traits
from memcalc.engine.parallel.deepspeed.deepspeed_setup import (
    deepspeed_kernels,
    in_one_dtype,
    runs_deepspeed,
)
from memcalc.engine.parallel.megatron.megatron_layout import MEGATRON_CODES, megatron_kernels
from memcalc.engine.parallel.megatron.nanotron_layout import CODE as NANOTRON
from memcalc.engine.parallel.megatron.nanotron_layout import nanotron_kernels
from memcalc.errors import ConfigError
from memcalc.inputs.model import ModelConfig, check_choice
from memcalc.inputs.stacks import Stack
from memcalc.inputs.training import ResolvedSetup
from memcalc.inputs.training_names import ATTENTIONS, LOSSES, NORMS


class Precision(NamedTuple):
    """What a precision's name means: dtypes of parameters and matmuls, casts, master copies."""

    param_dtype: str
    compute_dtype: str
    autocast: bool = False
    master: bool = False
    fp8_linear: bool = False


#: tf32 changes the matmuls' arithmetic (19 bits), not one stored byte: 4 bytes an element.
PRECISIONS = {
    "fp32": Precision("fp32", "fp32"),
    "tf32": Precision("fp32", "fp32"),
    "fp16-mixed": Precision("fp32", "fp16", autocast=True),
    "bf16-mixed": Precision("fp32", "bf16", autocast=True),
    "bf16": Precision("bf16", "bf16"),
    "bf16-master": Precision("bf16", "bf16", master=True),
    "fp8-mixed": Precision("fp32", "bf16", autocast=True, fp8_linear=True),
}

_CHUNKED = ("chunked", "fused")
#: What `--set kernels.NAME=` takes.
CHOICES = {
    "norm": NORMS,
    "attention": ATTENTIONS,
    "loss": LOSSES,
    "device": ("cuda", "cpu"),
    "attention_code": ("", "flash1", "triton", "cudnn"),
}
#: watched: tensors as a dispatch mode sees them. fused_gate_up: one linear for both, as Phi-3 has it.
#: cuda_graphs: compiled blocks are replayed as CUDA graphs.
#: packed: rotary rows by sample. compile_loss: with compiled blocks, the cross-entropy too.
#: attention_code: whose fused attention runs, for its speed alone: FlashAttention 1, its Triton version.
#: fp8_gather: FSDP2 gathers blocks' matrices in fp8. expandable_segments: the allocator's setting.
#: narrow_loss: a family's code whose cross-entropy takes the logits in their own dtype (Qwen-1's).
_FLAGS = (
    "watched", "fused_gate_up", "cuda_graphs", "packed", "compile_loss", "fp8_gather",
    "expandable_segments", "narrow_loss",
)  # fmt: skip


def kernels_of(
    resolved: ResolvedSetup, stack: Stack, overrides: Mapping[str, Any]
) -> tuple[Kernels, list[str]]:
    """The kernels of a setup on a stack, and what a reader must know of them."""
    setup, config = resolved.setup, resolved.config
    precision = PRECISIONS[setup.precision]
    choices = {**stack.choices, **_checked(overrides)}
    family_code = bool(choices.pop("family_code", False))
    check_code(config, stack.name, family_code)
    compiled = setup.compile or bool(choices.pop("compile", False))
    kernel, note = _attention(config, overrides.get("attention", setup.attention), family_code)
    own_loss = "plain" if config.is_encoder else choices["loss"]
    loss = setup.loss or own_loss
    plain = _plain_traits(choices)
    check_layer_code(config, plain.code, kernel)
    kernels = Kernels(
        param_dtype=precision.param_dtype,
        compute_dtype=precision.compute_dtype,
        autocast=precision.autocast,
        fp8_linear=precision.fp8_linear,
        fp8_gather=precision.fp8_linear and choices.get("fp8_gather", False),
        norm=choices["norm"],
        attention=kernel,
        loss=loss,
        loss_chunks=_loss_chunks(resolved, loss, plain.code),
        selective=setup.recompute == "selective",
        device=choices.get("device", "cuda"),
        watched=choices.get("watched", False),
        hf=family_code,
        narrow_loss=_narrow_loss(choices, stack, family_code),
        compiled=compiled,
        compiled_loss=compiled and choices.get("compile_loss", False),
        long_rows=compiled and resolved.seq_len > LONG_ROW,
        cuda_graphs=choices.get("cuda_graphs", False),
        attention_code=choices.get("attention_code", ""),
        traits=traits_for(config.model_type) if family_code else plain,
        pads_bias=padded_rows(resolved, kernel),
    )
    if stack.parallel.get("code") == NANOTRON:
        kernels = nanotron_kernels(kernels, resolved, stack)
    elif stack.parallel.get("code") in MEGATRON_CODES:
        kernels = megatron_kernels(kernels, resolved, stack)
    elif runs_deepspeed(stack):
        kernels = deepspeed_kernels(kernels, resolved, stack)
    if kernels.cuda_graphs and not compiled:
        raise ConfigError("kernels.cuda_graphs: got true without --compile; rule: both")
    if compiled:
        check_compiled(config, setup, kernel, stack.name)
    kernels = in_one_dtype(with_adapter(kernels, resolved, stack), setup, stack)
    return kernels, ([note] if note else []) + _notes(config, kernels, own_loss)


def _narrow_loss(choices: Mapping[str, Any], stack: Stack, family_code: bool) -> bool:
    """Whether the family's loss reads the logits as they are. Raises on code that is not a family's."""
    if choices.get("narrow_loss") and not family_code:
        raise ConfigError(f"kernels.narrow_loss: got true on stack {stack.name}; rule: stack hf")
    return bool(choices.get("narrow_loss"))


def has_expandable_segments(stack: Stack, overrides: Mapping[str, Any]) -> bool:
    """Whether the allocator runs with PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True."""
    name = "expandable_segments"
    return bool(overrides.get(name, stack.choices.get(name, False)))


def _notes(config: ModelConfig, kernels: Kernels, stack_loss: str) -> list[str]:
    """What a reader must know of the choices: closed forms, and what the stack does not do."""
    said = {
        "loss fused: gradients made in forward, chunk by chunk, as memcalc's decoder does it": (
            kernels.loss == "fused" and not kernels.hf and kernels.megatron is None
        ),
        f"loss {kernels.loss} has no effect: the stack runs the family's own loss": (
            kernels.hf and kernels.loss != stack_loss
        ),
        "recompute selective has no effect: the family's code has no such checkpoint": (
            kernels.hf and kernels.selective
        ),
        "transformers' grouped expert products need 16-bit weights; use --precision bf16": (
            kernels.hf and kernels.autocast and config.moe is not None
        ),
        "fp16-mixed: the gradient scaler's three scalars are left out": (
            kernels.compute_dtype == "fp16"
        ),
        "CUDA graphs: their own memory pools are not estimated": kernels.cuda_graphs,
        "fp8-mixed: linears of the blocks in fp8; head, routers, biased linears in 16 bit": (
            kernels.fp8_linear
        ),
    }
    return [*(note for note, applies in said.items() if applies), *adapter_notes(kernels)]


def _plain_traits(choices: Mapping[str, Any]) -> Traits:
    """Traits of code that is one for all families."""
    code = choices.get("layer_code", "plain")
    return Traits(
        fused_gate_up=choices.get("fused_gate_up", False),
        code=code,
        packed=choices.get("packed", False),
        tables="fp32" if code == "litgpt" else "full",
    )


def _loss_chunks(resolved: ResolvedSetup, loss: str, code: str) -> int:
    """Chunks of the loss, by the user's number or by litgpt's rows. Raises what litgpt has not."""
    if code == "litgpt":
        check_litgpt(resolved, loss)
        return litgpt_chunks(resolved.micro_batch_size, resolved.seq_len)
    return _chunks(resolved.tokens, resolved.setup.loss_chunks) if loss in _CHUNKED else 1


def _chunks(tokens: int, wanted: int) -> int:
    """How many chunks torch.chunk really cuts: equal ones, the last may be shorter, none empty."""
    part = -(-tokens // wanted)
    return -(-tokens // part)


def _attention(config: ModelConfig, wanted: str, family_code: bool) -> tuple[str, str]:
    """The attention kernel that can compute this model, and a note where it is not the one asked."""
    if family_code:
        kernel, note = attention_for(config.model_type, wanted)
        if note or config.position_embedding != "alibi":
            return kernel, note
    if wanted == "eager":
        return wanted, ""
    if config.attn_logit_softcapping:
        return "eager", f"attention: eager, not {wanted}: no kernel of PyTorch caps scores"
    if config.position_embedding == "relative":
        return "eager", f"attention: eager, not {wanted}: no kernel takes relative positions"
    if config.attention_sinks:
        return "eager", f"attention: eager, not {wanted}: no kernel of PyTorch has sinks"
    if config.position_embedding == "alibi" and wanted != "efficient":
        return "efficient", f"attention: efficient, not {wanted}: only it takes ALiBi's bias"
    return wanted, ""


def _checked(overrides: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in overrides.items():
        if name in _FLAGS:
            if not isinstance(value, bool):
                raise ConfigError(f"kernels.{name}: got {value!r}; rule: true or false")
            continue
        if name not in CHOICES:
            from memcalc.errors import unknown

            raise unknown("kernels", name, [*CHOICES, *_FLAGS])
        check_choice(f"kernels.{name}", value, CHOICES[name])
    return dict(overrides)
