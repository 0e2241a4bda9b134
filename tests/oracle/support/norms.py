"""The ways a norm is written: by hand as in transformers, decomposed, fused, LayerNorm."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.oracle.support.tracker import op

_EPS = 1e-6


class _Norm(nn.Module):
    """A norm over the last dimension that is one ledger operator called `name`."""

    def __init__(self, width: int, name: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        with op(self.name):
            return self.normalise(x)

    def normalise(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class HandNorm(_Norm):
    """RMSNorm as model code writes it: the product in fp32, the weight in the input's dtype."""

    def normalise(self, x: Tensor) -> Tensor:
        dtype = x.dtype
        x = x.to(torch.float32)
        variance = x.pow(2).mean(-1, keepdim=True)
        x = x * torch.rsqrt(variance + _EPS)
        return self.weight * x.to(dtype)


def _as_autocast_casts(x: Tensor, weight: Tensor) -> Tensor:
    """CUDA autocast runs rms_norm and layer_norm in fp32; elsewhere x has the weight's dtype."""
    return x.to(weight.dtype)


class DecomposedNorm(_Norm):
    """F.rms_norm where no fused kernel exists: torch takes it apart."""

    def normalise(self, x: Tensor) -> Tensor:
        x = _as_autocast_casts(x, self.weight)
        return F.rms_norm(x, self.weight.shape, self.weight, _EPS)


class _FusedRMSNorm(torch.autograd.Function):
    """What CUDA's kernel allocates and saves (aten._fused_rms_norm is decomposed off CUDA)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        out = torch.empty_like(x)
        rstd = torch.empty((*x.shape[:-1], 1), dtype=torch.float32, device=x.device)
        ctx.save_for_backward(x, weight, rstd)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, weight, _rstd = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight)


class FusedNorm(_Norm):
    def normalise(self, x: Tensor) -> Tensor:
        return _FusedRMSNorm.apply(_as_autocast_casts(x, self.weight), self.weight)


class LayerNorm(_Norm):
    """nn.LayerNorm; on "meta" its statistics are fp32 as on CUDA, on fake cpu they are bf16."""

    def __init__(self, width: int, name: str) -> None:
        super().__init__(width, name)
        self.bias = nn.Parameter(torch.zeros(width))

    def normalise(self, x: Tensor) -> Tensor:
        x = _as_autocast_casts(x, self.weight)
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias)


NORMS: dict[str, type[_Norm]] = {
    "hand": HandNorm,
    "decomposed": DecomposedNorm,
    "fused": FusedNorm,
    "layer": LayerNorm,
}
