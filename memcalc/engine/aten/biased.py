"""What makes a learned bias on attention's scores: masks, padded rows.

Source: PyTorch 2.13, derivatives.yaml, aten/src/ATen/native/PadNd.cpp.
Checked by: oracle/test_hf_encoders.py, event for event.
"""

from __future__ import annotations

from typing import Any

from memcalc.engine.aten.latent import pad_last
from memcalc.engine.aten.pointwise import out_like
from memcalc.engine.aten.shape import narrow
from memcalc.engine.autograd import Grads, Node, node_for
from memcalc.engine.sizes import ONE, Size
from memcalc.engine.tensors import Tensor


def pad_rows(x: Tensor, width: Size) -> Tensor:
    """F.pad of the last dim to `width`, then the slice of the old length: a copy with longer rows."""
    return narrow(pad_last(x, width), x.shape[-1])


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
