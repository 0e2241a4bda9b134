"""Attention as Transformer Engine runs it: kernels over (s, b, a, d), alone or over a context ring.

A kernel keeps q, k, v, its output, one fp32 log-sum-exp a query and the generator's state. Ulysses
(all-to-all) keeps the output by heads beside the output by positions, which the next linear keeps. A
ring holds every rank's keys and values and every step's output until its forward ends.
Shapes: q (s, b, a, d), k (s, b, k, d), v (s, b, k, d_v); c ranks share a sequence.
Source: TransformerEngine 2.11, pytorch/attention/dot_product_attention/backends.py (FusedAttnFunc),
context_parallel.py (AttnFuncWithCPAndKVP2P, AttnFuncWithCPAndQKVOA2A), attention/rope.py.
Not counted: scratch inside the kernels' backward. Checked by: unit/test_megatron_ops.py.
"""

from __future__ import annotations

from typing import Any

from memcalc.engine.aten.matmul import count_flops
from memcalc.engine.autograd import Grads, Node, node_for
from memcalc.engine.sizes import Size, number, product
from memcalc.engine.tensors import Tensor


def fused_rope(x: Tensor) -> Tensor:
    """Rotary embedding as one kernel: a new tensor each way; keeps the angles alone."""
    return _rewritten(x, "fused_rope")


def _rewritten(x: Tensor, name: str) -> Tensor:
    """One kernel from x to a new tensor of its shape, nothing kept; likewise back."""
    node = node_for(_rewritten_backward, x)
    out = x.tape.empty(name, x.shape, x.dtype)
    if node:
        node.meta = name
        return node.output(out)
    return out


def _rewritten_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    return [gradient.tape.empty(node.meta, gradient.shape, gradient.dtype)]


def copied(x: Tensor) -> Tensor:
    """A copy in another layout; the gradient is read in place."""
    node = node_for(_copied_backward, x)
    out = x.tape.empty("clone", x.shape, x.dtype)
    return node.output(out) if node else out


def _copied_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    return [grads[0]]


def split_along(x: Tensor, sizes: tuple[Size, ...]) -> tuple[Tensor, ...]:
    """SplitAlongDim over the last dim: views; gradients that lie in one tensor are not copied."""
    node = node_for(_split_backward, x)
    parts = tuple(x.view_as((*x.shape[:-1], size), x.order, x.strides) for size in sizes)
    return tuple(node.output(part) for part in parts) if node else parts


def _split_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    shape, dtype = node.inputs[0]
    first = grads[0]
    assert first is not None
    if all(one is not None and one.storage is first.storage for one in grads):
        return [first.view_as(shape, None, None)]
    return [first.tape.empty("cat", shape, dtype)]


def attention(query: Tensor, key: Tensor, value: Tensor, context: tuple[str, int]) -> Tensor:
    """softmax(q k^T) v of a rank's positions; context: (none | ulysses | ring, ranks c).

    FLOPs: 2 s s' b a (d + d_v) forward for a sequence of s' = c s positions, the full square.
    """
    node = node_for(_attention_backward, query, key, value)
    s, b, a, d = query.shape
    flops = s * s * context[1] * b * a * 2
    count_flops(query.tape, "forward", flops * (d + value.shape[3]))
    kept, out = _FORWARD[context[0]]((query, key, value), context[1])
    if node is None:
        return out
    for one in kept:
        node.save(one, "dgrad")
    node.meta = (context, flops * (d * 3 + value.shape[3] * 2))
    return node.output(out)


def _extras(query: Tensor) -> list[Tensor]:
    """Log-sum-exp of each query of each head, and the generator's seed and offset."""
    s, b, a, _ = query.shape
    tape = query.tape
    made = tape.empty("fused_attn_fwd", (b, a, s), "fp32")
    return [made, tape.empty("fused_attn_fwd", (number(2),), "int64")]


def _alone(qkv: tuple[Tensor, ...], ranks: int) -> tuple[list[Tensor], Tensor]:
    query, _, value = qkv
    out = _like(query, value, "fused_attn_fwd")
    return [*qkv, out, *_extras(query)], out


def _like(query: Tensor, value: Tensor, name: str) -> Tensor:
    """An output: the query's heads, the value's width."""
    return query.tape.empty(name, (*query.shape[:3], value.shape[3]), query.dtype)


def _ulysses(qkv: tuple[Tensor, ...], ranks: int) -> tuple[list[Tensor], Tensor]:
    """Each of q, k, v laid out by head, sent, laid out by position; the output likewise back."""
    sent = [qkv[0].tape.empty("movedim", one.shape, one.dtype) for one in qkv]
    by_heads = [_received(one) for one in sent]
    del sent
    inner = _like(by_heads[0], by_heads[2], "fused_attn_fwd")
    extras = _extras(by_heads[0])
    reordered = inner.tape.empty("index_select", inner.shape, inner.dtype)
    out = _received(reordered)
    del reordered
    return [*by_heads, inner, *extras], out


def _received(sent: Tensor) -> Tensor:
    """An all-to-all's result, put in order."""
    tape = sent.tape
    raw = tape.empty("all_to_all", sent.shape, sent.dtype)
    out = tape.empty("index_select", sent.shape, sent.dtype)
    del raw
    return out


def _ring(qkv: tuple[Tensor, ...], ranks: int) -> tuple[list[Tensor], Tensor]:
    """Keys and values of every rank pass by; each step's output is kept until all are merged.

    The last rank of a causal ring, which computes on all its queries in every step.
    """
    query, key, value = qkv
    tape = query.tape
    wide = (product(key.shape) + product(value.shape),)
    held = [tape.empty("cat", wide, key.dtype)]
    steps: list[Tensor] = []
    for step in range(ranks):
        if step < ranks - 1:
            held.append(tape.empty("empty_like", wide, key.dtype))
        steps += [_like(query, value, "fused_attn_fwd"), *_extras(query)]
    total = tape.empty("clone", steps[1].shape, "fp32")
    out = _like(query, value, "flash_attn_fwd_out_correction_init")
    return [query, held[-1], out, total, *steps[2::3]], out


_FORWARD = {"none": _alone, "ulysses": _ulysses, "ring": _ring}


def _attention_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    (method, ranks), flops = node.meta
    count_flops(gradient.tape, "dgrad", flops)
    return _BACKWARD[method](node, gradient, ranks)


def _alone_backward(node: Node, gradient: Tensor, ranks: int) -> Grads:
    (query, dtype), (key, _), (value, _) = node.inputs
    tape = gradient.tape
    assert node.saved is not None
    shared = [one.storage for _, one in node.saved[:3]]
    if shared[0] is shared[1] is shared[2]:  # q, k, v interleaved in one tensor: so are gradients
        whole = tape.empty("fused_attn_bwd", (*query[:3], query[3] * 3), dtype)
        return [whole.view_as(shape, None, whole.strides) for shape in (query, key, value)]
    return [tape.empty("fused_attn_bwd", shape, dtype) for shape in (query, key, value)]


def _ulysses_backward(node: Node, gradient: Tensor, ranks: int) -> Grads:
    tape = gradient.tape
    sent = tape.empty("movedim", gradient.shape, gradient.dtype)
    by_heads = _received(sent)
    del sent
    inner = [tape.empty("fused_attn_bwd", shape, dtype) for shape, dtype in node.inputs]
    sent_back = [tape.empty("index_select", one.shape, one.dtype) for one in inner]
    del inner
    result: Grads = [_received(one) for one in sent_back]
    del by_heads, sent_back
    return result


def _ring_backward(node: Node, gradient: Tensor, ranks: int) -> Grads:
    """Keys, values and their gradients travel in two pairs of buffers; one step's gradients beside."""
    (query, dtype), (key, _), (value, _) = node.inputs
    tape = gradient.tape
    total = tape.empty("empty_like", query, dtype)
    wide = (number(2), product(key) + product(value))
    travelling = [tape.empty("empty", wide, dtype) for _ in range(2)]
    step = [tape.empty("fused_attn_bwd", shape, dtype) for shape in (query, key, value)]
    del step
    both = travelling[0]
    del travelling
    return [total, both.view_as(key, None, None), both.view_as(value, None, None)]


_BACKWARD = {"none": _alone_backward, "ulysses": _ulysses_backward, "ring": _ring_backward}
