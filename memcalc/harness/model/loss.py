"""Head and cross-entropy: whole, upcast, in chunks of tokens, or with gradients made in forward.

Symbols: T = b s tokens, V vocabulary, w width of the head's input. Labels are int64 (T).
Checked by: oracle/test_torch_saved.py, harness/test_decoder_variants.py.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from memcalc.engine.kernels import Kernels
from memcalc.harness.model.casting import DTYPES, cast_parameter, cast_scope, linear
from memcalc.harness.watch.scopes import enter_loss, op


def logits_of(
    hidden: Tensor, head: tuple[Tensor, Tensor | None], cap: float | None, kernels: Kernels
) -> Tensor:
    """Logits (..., V) of hidden states; head: its weight and bias, cap: the model's soft cap."""
    with op("lm_head"):
        logits = linear(hidden, *head, kernels)
    if cap is None:
        return logits
    with op("logit_softcap"):
        logits = logits / cap
        logits = torch.tanh(logits)
        return logits * cap


def cross_entropy(
    logits: Tensor, labels: Tensor, upcast: bool, autocast: bool, reduction: str = "mean"
) -> Tensor:
    """Cross entropy of (T, V) logits.

    Under CUDA autocast F.cross_entropy asks log_softmax for its input's dtype, so the log
    probabilities stay in 16 bit, and the likelihood is then an fp32 operator on a cast of them.
    """
    with op("loss"):
        if upcast:
            return F.cross_entropy(logits.float(), labels, reduction=reduction)
        if autocast:
            log_probs = F.log_softmax(logits, -1, dtype=logits.dtype)
            return F.nll_loss(log_probs.float(), labels, reduction=reduction)
        return F.cross_entropy(logits, labels, reduction=reduction)


def chunked_loss(
    hidden: Tensor,
    labels: Tensor,
    head: tuple[Tensor, Tensor | None],
    cap: float | None,
    kernels: Kernels,
) -> Tensor:
    """Head and loss of one chunk of tokens at a time, recomputed in backward; the mean over T."""

    def part_loss(rows: Tensor, part: Tensor) -> Tensor:
        with cast_scope(kernels.autocast):
            logits = logits_of(rows, head, cap, kernels)
            return cross_entropy(logits, part, True, kernels.autocast, "sum")

    enter_loss()
    total = None
    with op("loss"):
        pieces = hidden.reshape(-1, hidden.shape[-1]).chunk(kernels.loss_chunks)
        parts = labels.chunk(kernels.loss_chunks)
    for piece, part in zip(pieces, parts, strict=True):
        one = checkpoint(part_loss, piece, part, use_reentrant=False)
        with op("loss"):
            total = one if total is None else total + one
    assert total is not None
    with op("loss"):
        return total / labels.numel()  # type: ignore[no-any-return]


def fused_loss(hidden: Tensor, labels: Tensor, weight: Tensor, kernels: Kernels) -> Tensor:
    """Head and mean cross-entropy whose gradients are made in forward, chunk by chunk.

    Holds one chunk of logits at a time and works in it; keeps the gradients of hidden (T, w) and of
    the weight (V, w). Source: Liger-Kernel, ops/fused_linear_cross_entropy.py (arXiv:2410.10989).
    """
    enter_loss()
    dtype = DTYPES[kernels.compute_dtype]
    with op("lm_head"):
        weight = cast_parameter(weight, dtype)
        rows = hidden.to(dtype).reshape(-1, hidden.shape[-1])
        out: Tensor = _FusedLoss.apply(rows, weight, labels, kernels.loss_chunks)  # type: ignore[no-untyped-call]
    with op("loss"):
        return out.view(())


class _FusedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, labels: Tensor, chunks: int) -> Tensor:
        grad_rows, grad_weight = torch.zeros_like(rows), torch.zeros_like(weight)
        losses = torch.zeros(rows.shape[0], dtype=torch.float32, device=rows.device)
        tokens = labels.numel()
        parts = (x.chunk(chunks) for x in (rows, labels, grad_rows, losses))
        for piece, part, grad_piece, loss in zip(*parts, strict=True):
            _one_chunk((piece, weight, part), (grad_piece, grad_weight), loss, tokens)
        ctx.save_for_backward(grad_rows, grad_weight)
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_rows, grad_weight = ctx.saved_tensors
        factor = grads[0]
        return grad_rows.mul_(factor), grad_weight.mul_(factor), None, None


def _one_chunk(
    operands: tuple[Tensor, Tensor, Tensor],
    gradients: tuple[Tensor, Tensor],
    loss: Tensor,
    tokens: int,
) -> None:
    """Loss of each row of a chunk, and its part of both gradients; the logits are worked on in place."""
    rows, weight, labels = operands
    logits = rows @ weight.t()
    index = labels.unsqueeze(1)
    logits -= logits.amax(-1, keepdim=True)
    chosen = logits.gather(1, index).float()
    total = logits.exp_().sum(-1, keepdim=True, dtype=torch.float32)
    loss.copy_(((total.log() - chosen) / tokens).squeeze(1))
    logits /= total.to(logits.dtype)
    logits.scatter_add_(1, index, torch.full_like(chosen, -1.0).to(logits.dtype))
    logits /= tokens
    gradients[0].copy_(logits @ weight)
    gradients[1].addmm_(logits.t(), rows)
