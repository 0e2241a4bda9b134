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

from memcalc.engine.autograd import Grads, Node, node_for
from memcalc.engine.kernel_log import Ran
from memcalc.engine.kernel_log import attention as attention_kernel
from memcalc.engine.ledger import note_collective
from memcalc.engine.sizes import Size, number, product
from memcalc.engine.tensors import Shape, Tensor, bytes_of


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
    kept, out = _FORWARD[context[0]]((query, key, value), context[1])
    if node is None:
        return out
    for one in kept:
        node.save(one, "dgrad")
    node.meta = context
    return node.output(out)


def _ran(part: str, shapes: tuple[Shape, ...], ranks: int, dtype: str) -> Ran:
    """A kernel on q, k, v (s, b, heads, width): by heads, a part of them at the positions of all ranks."""
    name = "fused_attn_fwd" if part == "forward" else "fused_attn_bwd"
    (s, b, a, d), (s_kv, _, k, _), (*_, d_v) = shapes
    if ranks == 1:
        return attention_kernel(name, part, (b, a, k, s, s_kv, d, d_v), dtype)
    shape = (b, a.over(ranks), k.over(ranks), s * ranks, s_kv * ranks, d, d_v)
    whole = attention_kernel(name, part, (b, a, k, s, s_kv * ranks, d, d_v), dtype)
    return attention_kernel(name, part, shape, dtype)._replace(flops=whole.flops)


def _extras(query: Tensor) -> list[Tensor]:
    """Log-sum-exp of each query of each head, and the generator's seed and offset."""
    s, b, a, _ = query.shape
    tape = query.tape
    made = tape.empty("fused_attn_fwd", (b, a, s), "fp32")
    return [made, tape.empty("fused_attn_fwd", (number(2),), "int64")]


def _alone(qkv: tuple[Tensor, ...], ranks: int) -> tuple[list[Tensor], Tensor]:
    query, _, value = qkv
    query.tape.ran(_ran("forward", _shapes(qkv), 1, query.dtype))
    out = _like(query, value, "fused_attn_fwd")
    return [*qkv, out, *_extras(query)], out


def _shapes(qkv: tuple[Tensor, ...]) -> tuple[Shape, ...]:
    return tuple(one.shape for one in qkv)


def _like(query: Tensor, value: Tensor, name: str) -> Tensor:
    """An output: the query's heads, the value's width."""
    return query.tape.empty(name, (*query.shape[:3], value.shape[3]), query.dtype)


def _ulysses(qkv: tuple[Tensor, ...], ranks: int) -> tuple[list[Tensor], Tensor]:
    """Each of q, k, v laid out by head, sent, laid out by position; the output likewise back."""
    sent = [_copy("movedim", one) for one in qkv]
    by_heads = [_received(one) for one in sent]
    del sent
    qkv[0].tape.ran(_ran("forward", _shapes(qkv), ranks, qkv[0].dtype))
    inner = _like(by_heads[0], by_heads[2], "fused_attn_fwd")
    extras = _extras(by_heads[0])
    reordered = _copy("index_select", inner)
    out = _received(reordered)
    del reordered
    return [*by_heads, inner, *extras], out


def _received(sent: Tensor) -> Tensor:
    """An all-to-all's result, put in order."""
    tape = sent.tape
    note_collective(tape, "all_to_all", bytes_of(sent.shape, sent.dtype), "cp")
    raw = tape.empty("all_to_all", sent.shape, sent.dtype)
    out = _copy("index_select", raw)
    del raw
    return out


def _copy(name: str, x: Tensor) -> Tensor:
    """x in another order: a copy."""
    x.tape.loads(x)
    return x.tape.empty(name, x.shape, x.dtype)


def _ring(qkv: tuple[Tensor, ...], ranks: int) -> tuple[list[Tensor], Tensor]:
    """Keys and values of every rank pass by; each step's output is kept until all are merged.

    The last rank of a causal ring, which computes on all its queries in every step.
    """
    query, key, value = qkv
    tape = query.tape
    wide = (product(key.shape) + product(value.shape),)
    tape.loads(key, value)
    held = [tape.empty("cat", wide, key.dtype)]
    steps: list[Tensor] = []
    for step in range(ranks):
        if step < ranks - 1:
            note_collective(tape, "send", bytes_of(wide, key.dtype), "cp", "forward/n")
            tape.covered("empty_like")  # what the next step receives
            held.append(tape.empty("empty_like", wide, key.dtype))
        tape.ran(_ran("forward", _shapes(qkv), 1, query.dtype))
        steps += [_like(query, value, "fused_attn_fwd"), *_extras(query)]
    tape.loads(steps[1])
    total = tape.empty("clone", steps[1].shape, "fp32")
    for i in range(4, len(steps), 3):
        tape.in_place("flash_attn_fwd_softmax_lse_correction", total, steps[i])
    tape.loads(steps[0], steps[1], total)
    out = _like(query, value, "flash_attn_fwd_out_correction_init")
    for i in range(3, len(steps), 3):
        tape.in_place("flash_attn_fwd_out_correction", out, steps[i])
    return [query, held[-1], out, total, *steps[2::3]], out


_FORWARD = {"none": _alone, "ulysses": _ulysses, "ring": _ring}


def _attention_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    method, ranks = node.meta
    return _BACKWARD[method](node, gradient, ranks)


def _alone_backward(node: Node, gradient: Tensor, ranks: int) -> Grads:
    (query, dtype), (key, _), (value, _) = node.inputs
    tape = gradient.tape
    tape.ran(_ran("dgrad", (query, key, value), 1, dtype))
    assert node.saved is not None
    shared = [one.storage for _, one in node.saved[:3]]
    if shared[0] is shared[1] is shared[2]:  # q, k, v interleaved in one tensor: so are gradients
        whole = tape.empty("fused_attn_bwd", (*query[:3], query[3] * 3), dtype)
        return [whole.view_as(shape, None, whole.strides) for shape in (query, key, value)]
    return [tape.empty("fused_attn_bwd", shape, dtype) for shape in (query, key, value)]


def _ulysses_backward(node: Node, gradient: Tensor, ranks: int) -> Grads:
    tape = gradient.tape
    sent = _copy("movedim", gradient)
    by_heads = _received(sent)
    del sent
    shapes = tuple(shape for shape, _ in node.inputs)
    tape.ran(_ran("dgrad", shapes, ranks, gradient.dtype))
    inner = [tape.empty("fused_attn_bwd", shape, dtype) for shape, dtype in node.inputs]
    sent_back = [_copy("index_select", one) for one in inner]
    del inner
    result: Grads = [_received(one) for one in sent_back]
    del by_heads, sent_back
    return result


def _ring_backward(node: Node, gradient: Tensor, ranks: int) -> Grads:
    """Keys, values and their gradients travel in two pairs of buffers; one step's gradients beside."""
    (query, dtype), (key, _), (value, _) = node.inputs
    tape = gradient.tape
    tape.covered("empty_like")
    total = tape.empty("empty_like", query, dtype)
    wide = (number(2), product(key) + product(value))
    for _ in range(2 * ranks - 1):  # keys and values once less than their gradients
        note_collective(tape, "send", bytes_of(wide[1:], dtype), "cp", "backward/2n")
    travelling = [tape.empty("empty", wide, dtype) for _ in range(2)]
    ran = _ran("dgrad", (query, key, value), 1, dtype)
    tape.ran(ran)
    step = [tape.empty("fused_attn_bwd", shape, dtype) for shape in (query, key, value)]
    for number_of in range(ranks):  # the other steps, in the memory of the first; all are added up
        if number_of:
            tape.ran(ran)
        for made, summed in zip(step, (total, *_pair(travelling[0], key, value)), strict=True):
            tape.in_place("add_", summed, made)
    del made, summed, step
    both = travelling[0]
    del travelling
    return [total, *_pair(both, key, value)]


def _pair(both: Tensor, key: Shape, value: Shape) -> tuple[Tensor, Tensor]:
    """Gradients of keys and values in the buffer that travels."""
    return both.view_as(key, None, None), both.view_as(value, None, None)


_BACKWARD = {"none": _alone_backward, "ulysses": _ulysses_backward, "ring": _ring_backward}
