"""CUDA's fused RMSNorm on tensors without data, split over ranks or not.

The kernel exists on CUDA alone; elsewhere torch takes F.rms_norm apart. This stand-in takes and keeps
what the kernel does: the result and 1 / rms in fp32, (x, weight, 1 / rms) saved, and in backward the
gradients of x and weight. DTensor runs the kernel on each rank's part: a weight's gradient is then a
sum over the ranks that is still to be made (Partial) where x is split, else whole.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial
from torch.distributed.tensor.placement_types import Placement


class _FusedRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        local = _local(x)
        out = torch.empty_like(local)
        rstd = torch.empty((*local.shape[:-1], 1), dtype=torch.float32, device=local.device)
        ctx.save_for_backward(x, weight, rstd)
        return _like(out, x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, _rstd = ctx.saved_tensors
        grad_x, grad_weight = torch.empty_like(_local(x)), torch.empty_like(_local(weight))
        return _like(grad_x, x), _like(grad_weight, x, summed=True), None


def _local(x: Tensor) -> Tensor:
    return x._local_tensor if isinstance(x, DTensor) else x


def _like(part: Tensor, x: Tensor, summed: bool = False) -> Tensor:
    """A part as a tensor split like x; summed: over everything x is split over."""
    if not isinstance(x, DTensor):
        return part
    placements: list[Placement] = [
        Partial() if summed and p.is_shard() else p for p in x.placements
    ]
    return DTensor.from_local(part, x.device_mesh, placements, run_check=False)


def fused_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """F.rms_norm as one kernel."""
    out: Tensor = _FusedRMSNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return out
