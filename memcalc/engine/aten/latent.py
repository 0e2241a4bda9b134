"""Operators of latent attention and interleaved layouts: padding, filled slices, rotated pairs.

Source: tools/autograd/derivatives.yaml and torch/csrc/autograd/functions/tensor.cpp (CopySlices) of
PyTorch 2.13.
Checked by: oracle/test_hf_moe.py, oracle/test_sparse_blocks.py.
"""

from __future__ import annotations

from typing import Any

from memcalc.engine.aten.pointwise import broadcast, out_like
from memcalc.engine.aten.shape import narrow
from memcalc.engine.autograd import Grads, Node, node_for
from memcalc.engine.sizes import Size, number
from memcalc.engine.tensors import Shape, Tensor, bytes_of


def cut(x: Tensor, size: Size) -> Tensor:
    """x[..., a : a + size]: x itself when that is all of it."""
    return x if x.shape[-1] is size else narrow(x, size)


def subtract(x: Tensor, y: Tensor) -> Tensor:
    """x - y: keeps nothing; y's gradient is a negated copy."""
    node = node_for(_subtract_backward, x, y)
    shape, order = broadcast(x, y)
    out = x.tape.empty("sub.Tensor", shape, x.dtype, order)
    return node.output(out) if node else out


def _subtract_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    return [gradient, out_like("neg", gradient) if node.needs[1] else None]


def pad_last(x: Tensor, width: Size) -> Tensor:
    """x padded with zeros to width along the last dim: a new tensor; backward cuts into a new one."""
    node = node_for(_pad_backward, x)
    out = x.tape.empty("constant_pad_nd", (*x.shape[:-1], width), x.dtype)
    return node.output(out) if node else out


def _pad_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    return [gradient.tape.empty("constant_pad_nd", node.inputs[0][0], gradient.dtype)]


def fill(base: Tensor, part: Tensor) -> Tensor:
    """base[..., a:b].copy_(part) for a dense base: no bytes; backward copies the whole gradient.

    base's own gradient is that copy with the filled columns zeroed, part's the columns.
    """
    node = node_for(_fill_backward, base, part)
    base.tape.in_place("copy_", part)
    out = base.view_as(base.shape, None, None)
    if node:
        return node.output(out)
    return out


def _fill_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    tape = gradient.tape
    (shape, _), (part_shape, _) = node.inputs
    rest = tape.empty("new_empty_strided", shape, gradient.dtype)
    tape.loads_bytes(bytes_of(part_shape, gradient.dtype))
    columns = tape.empty("clone", part_shape, gradient.dtype)
    if not node.needs[0]:
        return [None, columns]
    tape.loads()
    tape.in_place("copy_", tape.empty("zeros_like", part_shape, gradient.dtype))
    return [rest, columns]


def as_complex(x: Tensor, half: Size) -> Tensor:
    """Dense fp32 pairs (..., 2 half) seen as complex numbers (..., half)."""
    node = node_for(_complex_backward, x)
    out = _seen_as(x, (*x.shape[:-1], half), "complex64")
    return node.output(out) if node else out


def _seen_as(x: Tensor, shape: Shape, dtype: str) -> Tensor:
    return Tensor(x.storage, x.tape, shape, dtype, x.order)


def _complex_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    return [_seen_as(gradient, node.inputs[0][0], "fp32")]


def as_real(x: Tensor, width: Size) -> Tensor:
    """Complex numbers (..., r/2) seen as fp32 (..., r)."""
    node = node_for(_real_backward, x)
    out = _seen_as(x, (*x.shape[:-1], width), "fp32")
    return node.output(out) if node else out


def _real_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    if not gradient.is_contiguous():
        gradient.tape.loads(gradient)
        gradient = gradient.tape.empty("clone", gradient.shape, gradient.dtype)
    return [_seen_as(gradient, node.inputs[0][0], "complex64")]


def rotate_complex(x: Tensor, angles: Tensor) -> Tensor:
    """x times unit complex numbers without gradient, which are kept, and copied in backward."""
    node = node_for(_rotate_backward, x)
    if node:
        node.save(angles, "dgrad")
    out = out_like("mul.Tensor", x)
    return node.output(out) if node else out


def _rotate_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    gradient.tape.loads(saved[0])
    conjugate = out_like("clone", saved[0])
    gradient.tape.loads(gradient, conjugate)
    out = out_like("mul.Tensor", gradient)
    del conjugate
    return [out]


def stack_last(x: Tensor, y: Tensor) -> Tensor:
    """torch.stack((x, y), -1): a new tensor; backward hands out views."""
    node = node_for(_stack_backward, x, y)
    out = x.tape.empty("stack", (*x.shape, number(2)), x.dtype)
    return node.output(out) if node else out


def _stack_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    shape, strides = gradient.shape[:-1], gradient.strides[:-1]
    return [gradient.view_as(shape, None, strides) for _ in node.inputs]


def flatten_pairs(x: Tensor, total: Size) -> Tensor:
    """(..., n, 2) as (..., 2 n), total being the name of 2 n: views both ways."""
    node = node_for(_pairs_backward, x)
    out = x.view_as((*x.shape[:-2], total), None, None)
    return node.output(out) if node else out


def _pairs_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    *outer, step = gradient.strides
    return [gradient.view_as(node.inputs[0][0], None, (*outer, step * 2, step))]
