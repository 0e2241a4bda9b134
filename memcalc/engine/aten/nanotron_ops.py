"""nanotron's own autograd functions, and flash-attn's as it calls them.

Linears: a column-parallel one gathers the sequence into a buffer that stands for the whole run
(MemoryBuffer "allgather", counted with the strategy's buffers) and keeps its rank's rows; a
row-parallel one keeps its input as it is given, a view too. Attention's backward sums dQ in fp32.
Shapes: x (s, b, i), weight (o, i); q (T, a, d), k and v (T, k, d) with T = b s tokens in one row.
Source: huggingface/nanotron 0.5, parallel/tensor_parallel/functional.py; flash-attention 2.7,
layers/rotary.py (ApplyRotaryEmb), flash_attn_interface.py (FlashAttnVarlenFunc), csrc/flash_attn/
flash_api.cpp (mha_varlen_bwd: dq_accum, softmax_d). Checked by: unit/test_nanotron_ops.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from memcalc.engine.aten.collective import note_gather, scattered
from memcalc.engine.aten.pointwise import out_like
from memcalc.engine.aten.shape import contiguous
from memcalc.engine.aten.te_linear import gemm, input_product, weight_product
from memcalc.engine.autograd import Grads, Node, node_for
from memcalc.engine.kernel_log import attention as attention_kernel
from memcalc.engine.sizes import Size, number, product
from memcalc.engine.tensors import Shape, Tape, Tensor

#: Rows that the fp32 sums of attention's backward have beyond the tokens, for each sequence.
_MORE_ROWS = 128


class Divided(NamedTuple):
    """A linear under sequence parallelism. rows: (s, b) it gathers to, or (s_t, b) it scatters to."""

    gathers: bool = False
    scatters: bool = False
    rows: Shape = ()


def linear(x: Tensor, weight: Tensor, how: Divided = Divided()) -> Tensor:  # noqa: B008
    """A linear without bias: keeps x as it is given, and the weight.

    F.linear inside copies an x whose rows do not lie one after the other.
    """
    node = node_for(_linear_backward, x, weight)
    rows = how.rows if how.gathers else x.shape[:-1]
    read = x if how.gathers or x.is_contiguous() else _rows_of("clone", x)
    if how.gathers:
        note_gather(x, (*rows, x.shape[-1]), "forward/n")
    out = gemm(read, weight, rows)
    del read
    if how.scatters:
        out = scattered(out, (*how.rows, weight.shape[0]))
    if node is None:
        return out
    node.save(x, "wgrad")
    node.save(weight, "dgrad")
    node.meta = how
    return node.output(out)


def _rows_of(name: str, x: Tensor) -> Tensor:
    """A contiguous copy of x, outside the autograd graph."""
    x.tape.loads(x)
    return x.tape.empty(name, x.shape, x.dtype)


def _linear_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    """The input's gradient, its reduction over the ranks, then the weight's gradient."""
    gradient = grads[0]
    assert gradient is not None
    how: Divided = node.meta
    tape, x = gradient.tape, saved[0]
    weight, dtype = node.inputs[1]
    rows = how.rows if how.gathers else x.shape[:-1]
    if how.gathers:
        note_gather(x, (*rows, x.shape[-1]), "dgrad")
    if how.scatters:
        note_gather(gradient, (*rows, gradient.shape[-1]), "dgrad/n")
    input_product(gradient, weight, product(rows), "matmul")
    made = tape.empty("matmul", (*rows, x.shape[-1]), gradient.dtype)
    result = scattered(made, x.shape, "wgrad") if how.gathers else made
    gradient = contiguous(gradient.detach())
    read = x if how.gathers or x.is_contiguous() else _rows_of("clone", x)
    weight_product(gradient, weight, product(rows), name="matmul")
    own = tape.empty("matmul", weight, dtype)
    del read, made
    return [result, own]


def unbind(x: Tensor) -> tuple[Tensor, ...]:
    """The entries along the first dim, two or three of them, as views; backward stacks."""
    node = node_for(_unbind_backward, x)
    count = x.shape[0].value({})
    parts = tuple(x.view_as(x.shape[1:], None, None) for _ in range(count))
    return tuple(node.output(part) for part in parts) if node else parts


def _unbind_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    some = next(one for one in grads if one is not None)
    return [some.tape.empty("stack", *node.inputs[0])]


def rotated_in_place(x: Tensor) -> Tensor:
    """flash-attn's rotary kernel with inplace: x itself, and its gradient likewise."""
    node = node_for(_in_place_backward, x)
    x.tape.in_place("apply_rotary", x)
    out = x.view_as(x.shape, x.order, None if x.is_dense else x.strides)
    return node.output(out) if node else out


def _in_place_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    gradient.tape.in_place("apply_rotary", gradient)
    return [gradient]


def flash_varlen(query: Tensor, key: Tensor, value: Tensor, rows: tuple[Size, Size]) -> Tensor:
    """flash_attn_varlen_func over rows (b, s): (T, a, d).

    Keeps q, k, v, the output, an fp32 log-sum-exp a query and head, the ends of the sequences and the
    generator's state.
    """
    node = node_for(_flash_backward, query, key, value)
    b, s = rows
    tokens, a, d = query.shape
    tape, shape = query.tape, (b, a, key.shape[1], s, s, d, value.shape[2])
    tape.loads()
    ends = [tape.empty("cu_seqlens", (b + number(1),), "int32") for _ in range(2)]
    tape.ran(attention_kernel("varlen_fwd", "forward", shape, query.dtype))
    out = tape.empty("varlen_fwd", (tokens, a, value.shape[2]), query.dtype)
    kept = [out, tape.empty("varlen_fwd", (a, tokens), "fp32")]
    kept.append(tape.empty("varlen_fwd", (number(2),), "int64"))
    if node is None:
        return out
    for one in (query, key, value, *kept, *ends):
        node.save(one, "dgrad")
    node.meta = shape
    return node.output(out)


def _flash_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    """Gradients, then scratch: dQ in fp32, a sum a query; dK and dV a query head each where grouped."""
    gradient = grads[0]
    assert gradient is not None
    tape, b = gradient.tape, node.meta[0]
    tape.ran(attention_kernel("varlen_bwd", "dgrad", node.meta, gradient.dtype))
    made: Grads = [tape.empty("varlen_bwd", *one) for one in node.inputs]
    (tokens, a, d), dtype = node.inputs[0]
    padded = tokens + b * _MORE_ROWS
    scratch = [_scratch(tape, "softmax_d", (a, padded), "fp32")]
    scratch.append(_scratch(tape, "dq_accum", (padded, a, d), "fp32"))
    if node.inputs[1][0][1] is not a:
        scratch += [_scratch(tape, "dkv_expanded", (tokens, a, d), dtype) for _ in range(2)]
    del scratch
    return made


def _scratch(tape: Tape, name: str, shape: Shape, dtype: str) -> Tensor:
    """Memory of a kernel noted already."""
    tape.covered(name)
    return tape.empty(name, shape, dtype)


def sharded_cross_entropy(logits: Tensor) -> Tensor:
    """Losses (s, b) of fp32 logits (s, b, V): a new fp32 tensor becomes the softmax, which is kept."""
    node = node_for(_softmax_backward, logits)
    tape, rows = logits.tape, product(logits.shape[:-1])
    largest, where = (tape.empty("max.dim", (rows,), dtype) for dtype in ("fp32", "int64"))
    del where
    tape.loads(logits, largest)
    softmax = out_like("sub", logits)
    mask = tape.empty("bitwise_or", (rows,), "bool")
    target = tape.empty("masked_target", (rows,), "int64")
    found = [tape.empty("arange", (rows,), "int64"), tape.empty("index", (rows,), "fp32")]
    tape.in_place("exp", softmax)
    tape.loads(softmax)
    found.append(tape.empty("sum", (rows,), "fp32"))
    tape.in_place("div_", softmax)
    losses = tape.empty("sub", logits.shape[:-1], "fp32")
    del found, largest
    if node is None:
        return losses
    for one in (softmax, mask, target):
        node.save(one, "dgrad")
    return node.output(losses)


def _softmax_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    """The gradient in place of the softmax."""
    tape, rows = saved[0].tape, saved[1].shape
    tape.loads()
    update = [tape.empty("arange", rows, "int64"), tape.empty("rsub", rows, "fp32")]
    del update
    tape.in_place("mul_", saved[0])
    grads.clear()  # a Python function's arguments go before autograd casts its result
    return [saved[0].detach()]


def passed_on(x: Tensor) -> Tensor:
    """What a stage without any module hands to the next: a copy each way."""
    node = node_for(_passed_backward, x)
    out = out_like("recv", x)
    return node.output(out) if node else out


def _passed_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    return [out_like("recv", gradient)]
