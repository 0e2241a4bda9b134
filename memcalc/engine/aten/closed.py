"""Kernels from outside PyTorch, as closed forms: fp8 linear layers, fused head and cross-entropy.

What they keep follows from their published code; neither was compared with a run yet, and every
estimate that uses one says so.
"""

from __future__ import annotations

from typing import Any

from memcalc.engine.aten.matmul import count_flops
from memcalc.engine.aten.shape import flatten_tokens, reshape
from memcalc.engine.autograd import Grads, Node, node_for
from memcalc.engine.sizes import ONE
from memcalc.engine.tensors import Tensor


def fp8_linear(x: Tensor, weight: Tensor) -> Tensor:
    """A linear whose three products run on fp8 copies, scaled tensor by tensor at each use.

    Keeps the 16-bit input and reads the 16-bit weight again in backward; each product makes fp8 copies
    of its two operands (1 byte an element) and drops them. Source: torchao, float8/float8_linear.py.
    """
    rows = flatten_tokens(x)
    node = node_for(_fp8_backward, rows, weight)
    if node:
        node.save(rows if weight.requires_grad else None, "wgrad")
        node.save(weight if x.requires_grad else None, "dgrad")
    flops = rows.numel * weight.shape[0] * 2
    operands = [_as_fp8(rows), _as_fp8(weight)]
    out = x.tape.empty("_scaled_mm", (rows.shape[0], weight.shape[0]), x.dtype)
    del operands
    count_flops(x.tape, "forward", flops)
    if node:
        node.meta = flops
        out = node.output(out)
    return reshape(out, (*x.shape[:-1], weight.shape[0]))


def _as_fp8(x: Tensor) -> Tensor:
    return x.tape.empty("to_fp8", x.shape, "fp8")


def _fp8_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    rows, weight = saved
    results: Grads = [None, None]
    for index, (kind, other) in enumerate((("dgrad", weight), ("wgrad", rows))):
        if node.needs[index]:
            operands = [_as_fp8(gradient), _as_fp8(other)]
            count_flops(gradient.tape, kind, node.meta)
            results[index] = gradient.tape.empty(
                "_scaled_mm", node.inputs[index][0], gradient.dtype
            )
            del operands
    return results


def fused_head_loss(x: Tensor, weight: Tensor, chunks: int) -> Tensor:
    """Head and mean cross-entropy in one kernel that makes its gradients in forward, chunk by chunk.

    Keeps the gradients of x (T, h) and of the weight (V, h), and holds one chunk of logits at a time;
    backward only scales. Source: Liger-Kernel, ops/fused_linear_cross_entropy.py (arXiv:2410.10989).
    """
    rows = flatten_tokens(x)
    node = node_for(_fused_loss_backward, rows, weight)
    tape, tokens, width = x.tape, rows.shape[0], weight.shape[0]
    grad_rows = tape.empty("zeros_like", rows.shape, x.dtype)
    grad_weight = tape.empty("zeros_like", weight.shape, weight.dtype)
    losses = tape.empty("zeros", (tokens,), "fp32")
    part = tokens.over(chunks)
    for _ in range(chunks):
        logits = tape.empty("mm", (part, width), x.dtype)
        piece = tape.empty("mm", (part, rows.shape[1]), x.dtype)
        del logits, piece
    for kind in ("forward", "dgrad", "wgrad"):
        count_flops(tape, kind, rows.numel * width * 2)
    out = tape.empty("sum", (ONE,), "fp32")
    del losses
    if node is None:
        return out
    node.save(grad_rows, "dgrad")
    node.save(grad_weight, "wgrad")
    return node.output(out)


def _fused_loss_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    return [saved[0].detach(), saved[1].detach()]
