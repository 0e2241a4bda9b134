"""Kernels from outside PyTorch: fp8 linear layers, fused head and cross-entropy.

Written as the harness computes them (harness/model/fp8.py, harness/model/loss.py), after the published
code of torchao and Liger-Kernel; those libraries' own kernels may keep less while they work.
Checked by: oracle/test_plain_variants.py.
"""

from __future__ import annotations

from typing import Any

from memcalc.engine.aten.matmul import dispatched
from memcalc.engine.aten.pointwise import out_like, to
from memcalc.engine.aten.shape import flatten_tokens, reshape
from memcalc.engine.autograd import Grads, Node, node_for
from memcalc.engine.kernel_log import Ran, gemm, gemm_shape
from memcalc.engine.sizes import ONE, Size
from memcalc.engine.tensors import Shape, Tensor


def fp8_linear(x: Tensor, weight: Tensor) -> Tensor:
    """A linear whose three products run on fp8 copies, scaled tensor by tensor at each use.

    Keeps the 16-bit input and reads the 16-bit weight again in backward; each product makes fp8 copies
    of its two operands (1 byte an element) and drops them. The product wants its right operand
    column-major: both gradients need operands laid out anew, one and two more copies.
    Source: torchao, float8/float8_linear.py.
    """
    rows = flatten_tokens(x)
    node = node_for(_fp8_backward, rows, weight)
    made = [_as_fp8(weight), _as_fp8(rows)]
    x.tape.using([part for pair in made for part in pair])
    result = ((rows.shape[0], weight.shape[0]), x.dtype)
    shape = gemm_shape(rows.shape[0], weight.shape[0], rows.shape[1])
    out = dispatched(x.tape, gemm("_scaled_mm", "forward", shape, "fp8", x.dtype), [result])[0]
    del made
    if node:  # a custom function keeps its tensors once its forward has run
        node.save(rows if weight.requires_grad else None, "wgrad")
        node.save(weight if x.requires_grad else None, "dgrad")
        out = node.output(out)
    return reshape(out, (*x.shape[:-1], weight.shape[0]))


def _gradient_product(operands: tuple[Tensor, Tensor], shape: Shape, ran: Ran) -> Tensor:
    """A product of fp8 copies of the operands, laid out anew: the second one, for a weight both."""
    copies = 2 if ran.part == "wgrad" else 1
    tape, dtype = operands[0].tape, operands[0].dtype
    made = [_as_fp8(operand) for operand in operands]
    again = []
    for copy, _ in made[2 - copies :]:
        tape.using((copy,))
        again.append(tape.empty("clone", copy.shape, "fp8"))
    tape.using([*(copy for copy, _ in made[: 2 - copies]), *again, *(factor for _, factor in made)])
    tape.ran(ran)
    out = tape.empty("_scaled_mm", shape, dtype)
    del made, again
    return out


def _as_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    """The fp8 copy and its factor: the largest value, the scale and its 16-bit form are dropped."""
    tape = x.tape
    tape.using((x,))
    largest = tape.empty("linalg_vector_norm", (ONE,), "fp32")
    tape.in_place("clamp_", largest)
    tape.using((largest,))
    inverse = tape.empty("reciprocal", (ONE,), "fp32")
    tape.using((inverse,))
    wide = tape.empty("mul.Tensor", (ONE,), "fp32")
    del inverse
    tape.using((wide,))
    scale = tape.empty("_to_copy", (ONE,), x.dtype)
    del wide
    tape.using((x, scale))
    out = tape.empty("empty_like", x.shape, "fp8")
    tape.using((scale,))
    factor = tape.empty("_to_copy", (ONE,), "fp32")
    tape.in_place("reciprocal_", factor)
    del largest, scale
    return out, factor


def _fp8_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    rows, weight = saved
    (tokens, i), (o, _) = node.inputs[0][0], node.inputs[1][0]
    products = (("dgrad", weight, (tokens, i, o)), ("wgrad", rows, (o, i, tokens)))
    results: Grads = [None, None]
    for index, (part, other, shape) in enumerate(products):
        if node.needs[index]:
            ran = gemm("_scaled_mm", part, gemm_shape(*shape), "fp8", gradient.dtype)
            results[index] = _gradient_product((gradient, other), node.inputs[index][0], ran)
    return results


def fused_head_loss(x: Tensor, weight: Tensor, chunks: int) -> Tensor:
    """Head and mean cross-entropy in one kernel that makes its gradients in forward, chunk by chunk.

    Keeps the gradients of x (T, h) and of the weight (V, h), and holds one chunk of logits at a time;
    backward only scales. Source: Liger-Kernel, ops/fused_linear_cross_entropy.py (arXiv:2410.10989).
    """
    rows = flatten_tokens(x)
    node = node_for(_fused_loss_backward, rows, weight)
    tape, tokens, width = x.tape, rows.shape[0], weight.shape[0]
    tape.loads()
    grad_rows = tape.empty("zeros_like", rows.shape, x.dtype)
    tape.loads()
    grad_weight = tape.empty("zeros_like", weight.shape, weight.dtype)
    losses = tape.empty("zeros", (tokens,), "fp32")
    part = tokens.over(chunks)
    for size in (*(part,) * (chunks - 1), tokens - part * (chunks - 1)):
        _one_chunk(x, (size, width), grad_weight)
    tape.loads(losses)
    out = tape.empty("sum", (ONE,), "fp32")
    del losses
    if node is None:
        return out
    node.save(grad_rows, "dgrad")
    node.save(grad_weight, "wgrad")
    return node.output(out)


def _one_chunk(x: Tensor, shape: tuple[Size, Size], grad_weight: Tensor) -> None:
    """One chunk's logits (part, V), worked on in place, and its gradient (part, h).

    The weight's gradient is added to what earlier chunks made.
    """
    tape, column = x.tape, (shape[0], ONE)
    (part, width), features = shape, grad_weight.shape[1]

    def narrow(wide: Tensor) -> Tensor:
        return to(wide, x.dtype)

    tape.ran(gemm("mm", "forward", gemm_shape(part, width, features), x.dtype))
    logits = tape.empty("mm", shape, x.dtype)
    tape.loads(logits)
    tape.empty("amax", column, x.dtype)
    tape.in_place("sub_", logits)
    chosen = to(tape.empty("gather", column, x.dtype), "fp32")
    tape.in_place("exp_", logits)
    tape.loads(logits)
    total = tape.empty("sum.dim_IntList", column, "fp32")
    tape.loads(total)
    mean = _per_row(tape.empty("log", column, "fp32"))
    del mean
    narrow(total)
    tape.in_place("div_", logits)
    narrow(tape.empty("full_like", column, "fp32"))
    tape.in_place("div_", logits)
    tape.ran(gemm("mm", "dgrad", gemm_shape(part, features, width), x.dtype))
    piece = tape.empty("mm", (part, features), x.dtype)
    tape.in_place("copy_", piece)
    tape.ran(gemm("addmm_", "wgrad", gemm_shape(width, features, part), x.dtype, adds=True))
    del logits, piece, chosen


def _per_row(logarithm: Tensor) -> Tensor:
    """log(total) - chosen, divided by the number of tokens."""
    difference = out_like("sub.Tensor", logarithm)
    del logarithm
    return out_like("div.Tensor", difference)


def _fused_loss_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    for made in saved:
        made.tape.in_place("mul_", made)
    return [saved[0].detach(), saved[1].detach()]
