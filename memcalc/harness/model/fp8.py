"""A linear whose three products run on fp8 copies, scaled tensor by tensor at each use.

Inputs and weights in e4m3, gradients in e5m2, as torchao's dynamic tensor-wise recipe does. The 16-bit
input and weight are kept, the fp8 copies dropped after each product. Needs torch._scaled_mm on the
device: compute capability 8.9 or above, or a recent CPU build.
Source: torchao, float8/float8_linear.py. Checked by: harness/test_decoder_variants.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_E4M3, _E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def fp8_linear(x: Tensor, weight: Tensor) -> Tensor:
    """x W^T for x (..., i) and weight (o, i): (..., o) in x's dtype."""
    rows = x.reshape(-1, x.shape[-1])
    out: Tensor = _Fp8Linear.apply(rows, weight)  # type: ignore[no-untyped-call]
    return out.view(*x.shape[:-1], weight.shape[0])


def _to_fp8(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x scaled to the range of dtype, in x's layout, and the factor that undoes it (fp32)."""
    largest = torch.linalg.vector_norm(x, torch.inf, dtype=torch.float32).clamp_(min=1e-12)
    scale = (torch.finfo(dtype).max / largest).to(x.dtype)
    out = torch.empty_like(x, dtype=dtype)
    torch.mul(x, scale, out=out)
    return out, scale.float().reciprocal_()


def _product(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], dtype: torch.dtype) -> Tensor:
    """a (m, k) times b (k, n). The kernel wants a row-major and b column-major."""
    left, right = a[0].contiguous(), b[0].t().contiguous().t()
    out: Tensor = torch._scaled_mm(left, right, scale_a=a[1], scale_b=b[1], out_dtype=dtype)
    return out


class _Fp8Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weight)
        right = _to_fp8(weight, _E4M3)
        return _product(_to_fp8(rows, _E4M3), (right[0].t(), right[1]), rows.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        rows, weight = ctx.saved_tensors
        gradient, dtype = grads[0], rows.dtype
        grad_rows = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_rows = _product(_to_fp8(gradient, _E5M2), _to_fp8(weight, _E4M3), dtype)
        if ctx.needs_input_grad[1]:
            left = _to_fp8(gradient, _E5M2)
            grad_weight = _product((left[0].t(), left[1]), _to_fp8(rows, _E4M3), dtype)
        return grad_rows, grad_weight
