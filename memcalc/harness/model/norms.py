"""Norms over the last dimension: LayerNorm, and RMSNorm in the ways it is computed.

Symbols: x (..., h), weight (h). Each is one operator of the ledger, named where it is built.
Source: Zhang and Sennrich 2019 (arXiv:1910.07467). Checked by: oracle/test_torch_events.py,
harness/test_decoder_hf.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memcalc.engine.kernels import Kernels
from memcalc.errors import ConfigError
from memcalc.harness.watch.scopes import op
from memcalc.inputs.model import ModelConfig


class Norm(nn.Module):
    """The model's norm of width `width`, as the ledger's operator `name`."""

    def __init__(self, width: int, name: str, config: ModelConfig, kernels: Kernels) -> None:
        super().__init__()
        self.name, self.eps = name, 1e-6
        self.weight = nn.Parameter(torch.ones(width))
        has_bias = config.norm_type == "layernorm" and config.norm_bias
        self.bias = nn.Parameter(torch.zeros(width)) if has_bias else None
        self.autocast = kernels.autocast
        if config.norm_type == "layernorm":
            self.kind = "layer"
        else:
            self.kind = "unit_offset" if config.norm_unit_offset else kernels.norm

    def forward(self, x: Tensor) -> Tensor:
        """Normalised x times weight, in x's dtype (fp32 where autocast widens it)."""
        with op(self.name):
            if self.kind == "layer":
                bias = None if self.bias is None else self._widened(self.bias)
                weight = self._widened(self.weight)
                return F.layer_norm(self._widened(x), weight.shape, weight, bias, self.eps)
            if self.kind == "unit_offset":
                return _unit_offset(x, self.weight, self.eps)
            if self.kind == "hand":
                return _by_hand(x, self.weight, self.eps)
            if self.kind == "decomposed":
                weight = self._widened(self.weight)
                return _decomposed(self._widened(x), weight, self.eps)
            weight = self._widened(self.weight)
            return fused_rms_norm(self._widened(x), weight, self.eps)

    def _widened(self, x: Tensor) -> Tensor:
        """Autocast runs layer_norm and rms_norm, as operators of torch, in fp32."""
        return x.float() if self.autocast else x


def fused_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """F.rms_norm, one kernel on CUDA."""
    return F.rms_norm(x, weight.shape, weight, eps)


def _decomposed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """F.rms_norm where no fused kernel exists: torch takes it apart."""
    if x.is_cuda:
        raise ConfigError("norm: got 'decomposed', which CUDA does not do; valid: fused, hand")
    return F.rms_norm(x, weight.shape, weight, eps)


def _by_hand(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As model code writes it: statistics and product in fp32, then weight times the cast result."""
    dtype = x.dtype
    x = x.to(torch.float32)
    variance = x.pow(2).mean(-1, keepdim=True)
    x = x * torch.rsqrt(variance + eps)
    return weight * x.to(dtype)


def _unit_offset(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Gemma: (1 + weight) in fp32 times the fp32 result, then the cast."""
    out = _normalized(x.float(), eps)
    out = out * (1.0 + weight.float())
    return out.type_as(x)


def _normalized(wide: Tensor, eps: float) -> Tensor:
    return wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
