"""Attention with a learned bias on its scores, and what makes that bias: masks, padded rows.

Shapes: q (b, a, s_q, d), k and v (b, k, s_kv, d), bias (b, a, s_q, s_kv), seen over the batch.
Source: PyTorch 2.13, torch/_meta_registrations.py, derivatives.yaml, aten/src/ATen/native/PadNd.cpp.
Checked by: oracle/test_hf_encoders.py, event for event.
"""

from __future__ import annotations

from typing import Any

from memcalc.engine.aten.fused import (
    attention_extras,
    attention_gradients,
    attention_order,
    attention_ran,
)
from memcalc.engine.aten.matmul import dispatched
from memcalc.engine.aten.pointwise import out_like
from memcalc.engine.aten.shape import raw_permute
from memcalc.engine.autograd import Grads, Node, node_for
from memcalc.engine.sizes import ONE, Size
from memcalc.engine.tensors import Tensor

_KERNEL = "efficient"


def biased_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """The memory-efficient kernel; where the bias needs a gradient, backward makes it whole.

    Its rows are as long in memory as the bias's own, padded ones included.
    """
    tape = query.tape
    node = node_for(_backward, query, key, value, bias)
    if node:
        for tensor in (query, key, value, bias):
            node.save(tensor, "dgrad")
    ran = attention_ran(_KERNEL, "forward", query, key, value)
    order = attention_order(_KERNEL, query)
    shape = (*query.shape[:3], value.shape[3])
    made = (tuple(shape[i] for i in order), query.dtype)
    raw, *rest = dispatched(tape, ran, [made, *attention_extras(_KERNEL, query)])
    out = raw_permute(raw, tuple(order.index(i) for i in range(4)))
    del raw
    if node is None:
        return out
    for tensor in (out, *rest):
        node.save(tensor, "dgrad")
    return node.output(out)


def _backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    query, key, value, bias = saved[:4]
    query.tape.ran(attention_ran(_KERNEL, "dgrad", query, key, value))
    results = attention_gradients(_KERNEL, (query, key, value))
    if not node.needs[3]:
        return [*results, None]
    name = f"_scaled_dot_product_{_KERNEL}_attention_backward"
    row = bias.shape[3] if bias.is_dense else bias.strides[2]
    whole = query.tape.empty(name, (*bias.shape[:3], row), bias.dtype)
    return [
        *results,
        whole.view_as(bias.shape, None, None if row is bias.shape[3] else whole.strides),
    ]


def pad_last(x: Tensor, width: Size) -> Tensor:
    """F.pad of the last dim to `width`, then the slice of the old length: a copy with longer rows."""
    padded = _padded(x, width)
    node = node_for(_slice_backward, padded) if padded.requires_grad else None
    out = padded.view_as(x.shape, None, padded.strides)
    return node.output(out) if node else out


def _padded(x: Tensor, width: Size) -> Tensor:
    node = node_for(_pad_backward, x)
    out = x.tape.empty("constant_pad_nd", (*x.shape[:-1], width), x.dtype)
    return node.output(out) if node else out


def _pad_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    return [gradient.tape.empty("constant_pad_nd", node.inputs[0][0], gradient.dtype)]


def _slice_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    gradient.tape.loads(gradient, gradient)  # read, and written into zeros
    return [gradient.tape.empty("slice_backward", node.inputs[0][0], gradient.dtype)]


def where_allowed(allowed: Tensor, x: Tensor) -> Tensor:
    """torch.where(allowed, x, number): keeps the condition; backward is a where of its own."""
    node = node_for(_where_backward, x)
    if node:
        node.save(allowed, "dgrad")
    number = x.tape.empty("scalar_tensor", (ONE,), x.dtype)
    out = out_like("where.self", x)
    del number
    return node.output(out) if node else out


def _where_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    zero = gradient.tape.empty("scalar_tensor", (ONE,), gradient.dtype)
    out = out_like("where.self", gradient)
    del zero
    return [out]
