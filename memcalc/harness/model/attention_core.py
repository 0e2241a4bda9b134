"""Attention cores: softmax(q k^T / sqrt(d)) v by torch's kernels, called directly, or written out.

Shapes: q (b, a, s, d), k and v (b, k, s, d), result (b, a, s, d). Kernels are called by name, not
through F.scaled_dot_product_attention, so that a run measures the kernel it says. A CPU has one flash
kernel of its own. None of the fused kernels knows a sliding window: they attend to all earlier
positions, which takes the same memory.
Checked by: oracle/test_torch_saved.py, harness/test_decoder_hf.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_aten = torch.ops.aten


class Core(NamedTuple):
    """What a core needs beside its operands."""

    kernel: str  # flash | efficient | cudnn | eager
    device: str  # cuda | cpu: whose kernels
    dropout: float = 0.0
    softcap: float | None = None
    has_bias: bool = False  # the mask is a bias that fused kernels must add (ALiBi)


def dropout(x: Tensor, p: float, device: str) -> Tensor:
    """Dropout as the device does it: CUDA keeps a one-byte mask, a CPU one in x's dtype."""
    if device == "cpu":
        return F.dropout(x, p)
    out: Tensor = _aten.native_dropout(x, p, True)[0]
    return out


def fused(core: Core, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """The kernels that keep no scores."""
    out: Tensor
    causal = q.shape[2] == k.shape[2]  # a new position over a cache looks at all of it
    if core.kernel == "flash" and core.device == "cpu":
        out = _aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal)[0]
    elif core.kernel == "flash":
        out = _aten._scaled_dot_product_flash_attention(q, k, v, core.dropout, causal)[0]
    elif core.kernel == "cudnn":
        kernel = _aten._scaled_dot_product_cudnn_attention
        out = kernel(q, k, v, None, True, core.dropout, causal)[0]
    else:
        out = _efficient(core, q, k, v, bias)
    return out


def _efficient(core: Core, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Memory-efficient attention; it knows no grouped heads, so keys and values are repeated."""
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    if bias is not None:
        bias = bias.expand(q.shape[0], -1, -1, -1)
    kernel = _aten._scaled_dot_product_efficient_attention
    causal = bias is None and q.shape[2] == k.shape[2]
    out: Tensor = kernel(q, k, v, bias, True, core.dropout, causal)[0]
    return out


def eager(
    core: Core, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, sinks: Tensor | None = None
) -> Tensor:
    """Scores in full (b, a, s, s), softmax in fp32, every step a tensor of its own."""
    groups = q.shape[1] // k.shape[1]
    keys, values = repeat_heads(k, groups), repeat_heads(v, groups)

    def scores() -> Tensor:
        return torch.matmul(q, keys.transpose(2, 3)) * float(q.shape[-1] ** -0.5)

    return weighted_sum(core, scores, values, mask, sinks)


def weighted_sum(
    core: Core,
    scores: Callable[[], Tensor],
    values: Tensor,
    mask: Tensor,
    sinks: Tensor | None = None,
) -> Tensor:
    """The rest of eager attention: cap, mask, softmax, dropout, product with values (b, a, s, d).

    The scores are made here, so that no caller keeps them alive.
    """
    weights = scores()
    if core.softcap is not None:
        weights = weights / core.softcap
        weights = torch.tanh(weights)
        weights = weights * core.softcap
    weights = weights + mask
    if sinks is not None:
        weights = _softmax_with_sinks(weights, sinks)
    else:
        weights = F.softmax(weights, dim=-1, dtype=torch.float32).to(values.dtype)
    if core.dropout:
        weights = dropout(weights, core.dropout, core.device)
    return torch.matmul(weights, values)


def _softmax_with_sinks(weights: Tensor, sinks: Tensor) -> Tensor:
    """A logit of its own for each head joins the softmax as one more column, then is cut off."""
    column = sinks.reshape(1, -1, 1, 1).expand(*weights.shape[:3], 1)
    logits = torch.cat((weights, column), -1)
    probs = F.softmax(logits, dim=-1, dtype=torch.float32).to(weights.dtype)
    return probs[..., : weights.shape[-1]]


def repeat_heads(x: Tensor, groups: int) -> Tensor:
    """(b, k, s, d) to (b, k groups, s, d) by expand and reshape, one copy; none for one group."""
    if groups == 1:
        return x
    b, heads, s, d = x.shape
    return x[:, :, None].expand(b, heads, groups, s, d).reshape(b, heads * groups, s, d)
