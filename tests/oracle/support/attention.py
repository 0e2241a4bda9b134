"""Attention cores: flash, cuDNN and efficient kernels called directly, and the eager products."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_aten = torch.ops.aten


def flash(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    return _aten._scaled_dot_product_flash_attention(q, k, v, dropout, True)[0]


def cudnn(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    return _aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, dropout, True)[0]


def efficient(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """Memory-efficient attention; it knows no grouped heads, so keys and values are repeated."""
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    kernel = _aten._scaled_dot_product_efficient_attention
    return kernel(q, k, v, None, True, dropout, True)[0]


def eager(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """Scores in full, softmax in fp32; the result lies head-major and is copied to token-major."""
    groups = q.shape[1] // k.shape[1]
    keys, values = repeat_heads(k, groups), repeat_heads(v, groups)
    weights = torch.matmul(q, keys.transpose(2, 3)) * q.shape[-1] ** -0.5
    weights = weights + mask
    weights = F.softmax(weights, dim=-1, dtype=torch.float32).to(q.dtype)
    if dropout:
        weights = _aten.native_dropout(weights, dropout, True)[0]
    return torch.matmul(weights, values)


def repeat_heads(x: Tensor, groups: int) -> Tensor:
    """(b, k, s, d) to (b, k * groups, s, d) by expand and reshape, one copy; none for one group."""
    if groups == 1:
        return x
    b, heads, s, d = x.shape
    return x[:, :, None].expand(b, heads, groups, s, d).reshape(b, heads * groups, s, d)


def causal_mask(s: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(1, 1, s, s): zero where a position may look, the smallest number where it may not."""
    lowest = torch.finfo(dtype).min
    return torch.full((s, s), lowest, dtype=dtype, device=device).triu(1)[None, None]


CORES = {"flash": flash, "cudnn": cudnn, "efficient": efficient, "eager": eager}
