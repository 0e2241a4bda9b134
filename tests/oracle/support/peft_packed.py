"""A transformers model whose blocks' linears are bitsandbytes' own, on tensors without data."""

from __future__ import annotations

from typing import Any

import bitsandbytes
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tests.oracle.support.bitsandbytes_cuda import cuda_code, linear_of

__all__ = ["cuda_code", "pack", "states_of"]


def pack(model: Any, fmt: str) -> None:
    """Swap every linear but the head, as transformers does when it loads a quantised model."""
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear | Conv1D) and path != "lm_head":
            parent, _, name = path.rpartition(".")
            turned = isinstance(module, Conv1D)  # whose weight is (in, out)
            sizes = tuple(module.weight.shape[:: 1 if turned else -1])
            with torch.device("cpu"):  # bitsandbytes packs real numbers
                made = linear_of(fmt, *sizes, module.bias is not None)
            setattr(model.get_submodule(parent), name, made.train())
    model.is_loaded_in_4bit = fmt != "int8"
    model.is_loaded_in_8bit = fmt == "int8"
    model.is_quantized = True


def states_of(model: Any) -> list[Tensor]:
    """Scales and tables beside the packed matrices."""
    found: list[Tensor] = []
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            state = module.weight.quant_state
            found += [state.absmax, state.code]
            if state.nested:
                found += [state.offset, state.state2.absmax, state.state2.code]
        elif isinstance(module, bitsandbytes.nn.Linear8bitLt):
            found.append(module.weight.SCB)
    return [one for one in found if isinstance(one, torch.Tensor)]
