"""T5 and BERT of transformers from a configuration: saved bytes, peaks, events of one micro-batch.

`direct_efficient` is transformers' sdpa path with what PyTorch's dispatcher does on CUDA written out: the
additive mask padded to rows of 16 elements, spread over the batch, and handed to the
memory-efficient kernel, dropout inside (aten/native/transformers/attention.cpp, preprocess_mask). On the
meta device sdpa itself would take the product apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForMaskedLM, AutoModelForSeq2SeqLM
from transformers.integrations.sdpa_attention import create_position_bias_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.oracle.support.hf import (
    HfRecord,
    _one_byte_dropout_masks,
    _open_scopes,
    as_config,
    powers_of_cuda,
    recorded,
)

_aten = torch.ops.aten
_EFFICIENT, _FLASH = "direct_efficient", "direct_full"
_NAMES = {"efficient": _EFFICIENT, "flash": _FLASH, "eager": "eager"}
_ALIGNED = 16
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SEQ2SEQ = ("t5", "mt5")


def build(config: dict[str, Any], attention: str, dtype: torch.dtype) -> Any:
    """The model on the current device; a head of its own where the published configuration has one."""
    kind, made = config["model_type"], as_config(config)
    made.use_cache = False
    auto = AutoModelForSeq2SeqLM if kind in SEQ2SEQ else AutoModelForMaskedLM
    model = auto.from_config(made, attn_implementation=_NAMES[attention], dtype=dtype)
    if kind in SEQ2SEQ and config.get("tie_word_embeddings") is False:
        # from_config ties what from_pretrained leaves apart where a checkpoint holds both
        shared = model.shared.weight
        model.lm_head.weight = nn.Parameter(torch.empty_like(shared))
    model.train()
    return model


def run_encoder(
    config: dict[str, Any],
    shape: tuple[int, int, int],
    checkpoint: bool = False,
    attention: str = "efficient",
    precision: str = "bf16",
) -> HfRecord:
    """One forward and backward of (batch, source, target) tokens, labels as long as the target.

    precision: fp32, bf16, or bf16-mixed (fp32 parameters under autocast, on fake cpu tensors).
    """
    autocast = precision == "bf16-mixed"
    where = "cpu" if autocast else "meta"
    with ExitStack() as stack:
        stack.enter_context(_one_byte_dropout_masks())
        if autocast:
            stack.enter_context(FakeTensorMode())
            stack.enter_context(_rules_of_cuda())
        with torch.device(where):
            model = build(config, attention, DTYPES.get(precision, torch.float32))
            inputs = inputs_of(config, shape)
        if checkpoint:
            model.activation_checkpointing_enable({"use_reentrant": False})
        _open_scopes(model)
        return recorded(model, inputs, lambda: model(**inputs), autocast)


@contextmanager
def _rules_of_cuda() -> Iterator[None]:
    """Where CUDA's autocast casts and a CPU's does not: softmax, layer norm, powers, cross-entropy.

    The first three run in fp32. log_softmax is asked for its input's dtype by cross_entropy, and the
    likelihood is taken in fp32 (aten/src/ATen/autocast_mode.h, AT_FORALL_FP32 and
    AT_FORALL_FP32_SET_OPT_DTYPE; aten/src/ATen/native/LossNLL.cpp).
    """
    layer_norm, softmax = F.layer_norm, F.softmax

    def cross_entropy(x: Tensor, labels: Tensor, *rest: Any, **more: Any) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return F.nll_loss(F.log_softmax(x, -1).float(), labels)

    patches = {
        "layer_norm": lambda x, *rest, **more: layer_norm(x.float(), *rest, **more),
        "softmax": lambda x, *rest, **more: softmax(x.float(), *rest, **more),
        "cross_entropy": cross_entropy,
    }
    with ExitStack() as stack:
        for name, rule in patches.items():
            stack.enter_context(mock.patch.object(F, name, rule))
        stack.enter_context(powers_of_cuda())
        yield


def counted_flops(
    config: dict[str, Any], shape: tuple[int, int, int], checkpoint: bool, attention: str
) -> int:
    """What FlopCounterMode counts in one forward and backward."""
    with _one_byte_dropout_masks(), torch.device("meta"):
        model = build(config, attention, torch.float32)
        inputs = inputs_of(config, shape)
        if checkpoint:
            model.activation_checkpointing_enable({"use_reentrant": False})
        with FlopCounterMode(display=False) as counter:
            model(**inputs).loss.backward()
    return int(counter.get_total_flops())


def inputs_of(
    config: dict[str, Any], shape: tuple[int, int, int], own_labels: bool = False
) -> dict[str, Tensor]:
    """Ids and labels; own_labels: an encoder's are a tensor of their own."""
    batch, source, target = shape
    ids = torch.zeros(batch, source, dtype=torch.long)
    if config["model_type"] not in SEQ2SEQ:
        return {"input_ids": ids, "labels": ids.clone() if own_labels else ids}
    return {"input_ids": ids, "labels": torch.zeros(batch, target, dtype=torch.long)}


def _efficient(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    is_causal = attention_mask is None and query.shape[2] > 1 and module.is_causal
    if position_bias is not None:
        attention_mask = create_position_bias_mask(
            position_bias, attention_mask, is_causal, query, key
        )
        is_causal = False
    out = _sdpa(query, key, value, attention_mask, dropout, scaling)
    return out.transpose(1, 2).contiguous(), None


def _sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    scaling: float | None,
) -> Tensor:
    """scaled_dot_product_attention as CUDA dispatches it: casts of autocast, padding, the kernel."""
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (x.to(torch.bfloat16) for x in (query, key, value))
        mask = None if mask is None else mask.to(torch.bfloat16)
    if mask is not None:
        if any(stride % _ALIGNED for stride in mask.stride()[:-1]):
            width = mask.shape[-1]
            mask = F.pad(mask, (0, _ALIGNED - width % _ALIGNED))[..., :width]
        mask = mask.expand(*query.shape[:3], key.shape[2])
    kernel = _aten._scaled_dot_product_efficient_attention
    with torch.autocast("cpu", enabled=False):
        return kernel(query, key, value, mask, True, dropout, False, scale=scaling)[0]


def _full_flash(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Flash attention that sees all keys: BERT without a mask."""
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (x.to(torch.bfloat16) for x in (query, key, value))
    kernel = _aten._scaled_dot_product_flash_attention
    out = kernel(query, key, value, dropout, False, scale=scaling)[0]
    return out.transpose(1, 2).contiguous(), None


ALL_ATTENTION_FUNCTIONS.register(_EFFICIENT, _efficient)
ALL_ATTENTION_FUNCTIONS.register(_FLASH, _full_flash)

__all__ = ["DTYPES", "SEQ2SEQ", "build", "counted_flops", "inputs_of", "run_encoder"]
