"""Operators of a ring's steps, outside the autograd graph: views of chunks, flat buffers, fp32 sums.

Checked by: oracle/test_context_parallel.py.
"""

from __future__ import annotations

from memcalc.engine.tensors import Shape, Tensor

_SEQUENCE = 2


def contiguous(x: Tensor) -> Tensor:
    """x.contiguous(): a copy unless x already is."""
    if x.is_contiguous():
        return x
    x.tape.loads(x)
    return x.tape.empty("clone", x.shape, x.dtype)


def half(x: Tensor) -> Tensor:
    """One of the two chunks of x along the sequence: a view."""
    return x.view_as(_halved(x.shape), x.order, x.strides)


def _halved(shape: Shape) -> Shape:
    return (*shape[:_SEQUENCE], shape[_SEQUENCE].over(2), *shape[_SEQUENCE + 1 :])


def flat(x: Tensor) -> Tensor:
    """x.flatten(): a copy unless x is contiguous."""
    if x.is_contiguous():
        return x.view_as((x.numel,), None, None)
    x.tape.loads(x)
    return x.tape.empty("clone", (x.numel,), x.dtype)


def joined(key: Tensor, value: Tensor) -> Tensor:
    """torch.cat([key.flatten(), value.flatten()])."""
    parts = (flat(key), flat(value))
    key.tape.loads(*parts)
    return key.tape.empty("cat", (parts[0].numel + parts[1].numel,), key.dtype)


def pieces(buffer: Tensor | None, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Views of a flat buffer in the shapes of key and value."""
    assert buffer is not None
    return buffer.view_as(key.shape, None, None), buffer.view_as(value.shape, None, None)


def cast(x: Tensor, dtype: str) -> Tensor:
    """x.to(dtype), in x's layout; x itself where it has that dtype."""
    if x.dtype == dtype:
        return x
    x.tape.loads(x)
    return x.tape.empty("_to_copy", x.shape, dtype, x.order)


def wide(name: str, *operands: Tensor) -> Tensor:
    """The fp32 result of an element-wise operator, in the shape and layout of its last operand."""
    like = operands[-1]
    like.tape.loads(*operands)
    return like.tape.empty(name, like.shape, "fp32", like.order)


def accumulator(x: Tensor) -> Tensor:
    """torch.zeros_like(x, dtype=torch.float32)."""
    x.tape.loads()
    return x.tape.empty("zeros_like", x.shape, "fp32", x.order)


def updated(x: Tensor) -> Tensor:
    """torch.cat of a tensor's chunks, one of them replaced or added to."""
    x.tape.loads(x)
    return x.tape.empty("cat", x.shape, x.dtype)
