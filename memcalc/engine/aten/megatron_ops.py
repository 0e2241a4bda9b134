"""Megatron-Core's own autograd functions: head, vocabulary-parallel loss, embedding, dropout.

Source: Megatron-Core 0.14, tensor_parallel/layers.py, cross_entropy.py, fusions/fused_bias_dropout.py;
TransformerEngine 2.11, pytorch/cross_entropy.py.
Checked by: oracle/test_megatron_functions.py, unit/test_megatron_saved.py.
"""

from __future__ import annotations

from typing import Any

from memcalc.engine.aten.collective import note_gather, scattered, summed
from memcalc.engine.aten.pointwise import add, out_like
from memcalc.engine.aten.te_linear import How, gemm, input_product, weight_product
from memcalc.engine.autograd import Grads, Node, node_for
from memcalc.engine.sizes import ONE, product
from memcalc.engine.tensors import Tensor


def head(x: Tensor, weight: Tensor, how: How) -> Tensor:
    """Logits (s, b, V) of a column-parallel head; keeps its rank's rows.

    Under sequence parallelism the rows are gathered into one buffer that lives for the whole run
    (GlobalMemoryBuffer "mpu"; counted with the strategy's buffers).
    """
    node = node_for(_head_backward, x, weight)
    rows = how.rows if how.gathers else x.shape[:-1]
    if how.gathers:
        note_gather(x, (*rows, x.shape[-1]))
    out = gemm(x, weight, rows)
    if node is None:
        return out
    node.save(x, "wgrad")
    node.meta = how
    return node.output(out)


def _head_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    how: How = node.meta
    tape, x = gradient.tape, saved[0]
    weight, dtype = node.inputs[1]
    rows = product(gradient.shape[:-1])
    weight_product(gradient, weight, rows, how.adds_in_place, "matmul")
    input_product(gradient, weight, rows, "matmul")
    made = tape.empty("matmul", (*gradient.shape[:-1], x.shape[-1]), gradient.dtype)
    if how.gathers:
        note_gather(x, made.shape, "dgrad")
    if how.sums:
        summed(made, "wgrad")
    result = scattered(made, x.shape, "wgrad") if how.gathers else made
    if how.adds_in_place:
        return [result, tape.external(weight, dtype).detach()]
    return [result, tape.empty("matmul", weight, dtype)]


def cross_entropy(logits: Tensor, fused: bool) -> Tensor:
    """Losses (s, b) in fp32 of logits (s, b, V), the vocabulary divided or not.

    fused: Transformer Engine's kernel, which writes the gradient over the logits. Otherwise an fp32
    copy becomes the softmax, which is kept, and the gradient in place of it.
    """
    node = node_for(_in_place_backward if fused else _softmax_backward, logits)
    tape, rows = logits.tape, product(logits.shape[:-1])
    if fused:
        tape.covered("loss_1d")
        losses = tape.empty("loss_1d", logits.shape[:-1], "fp32")
        tape.loads(logits)
        tape.empty("m_d_X_y", (rows * 3,), "fp32")
        tape.in_place("cross_entropy", logits)
        if node is None:
            return losses
        node.save(logits, "dgrad")
        return node.output(losses)
    wide = out_like("_to_copy", logits, "fp32") if logits.dtype != "fp32" else logits
    tape.loads(wide)
    made = [tape.empty("max.dim", (rows,), dtype) for dtype in ("fp32", "int64")]
    del made[1]
    mask = tape.empty("bitwise_or", (rows,), "bool")
    target = tape.empty("masked_target", (rows,), "int64")
    tape.in_place("sub_", wide)
    made.append(tape.empty("predicted_logits", (rows,), "fp32"))
    tape.in_place("exp", wide)
    tape.loads(wide)
    made.append(tape.empty("sum", (rows,), "fp32"))
    tape.in_place("div_", wide)
    losses = tape.empty("sub", logits.shape[:-1], "fp32")
    del made
    if node is None:
        return losses
    for one in (wide, mask, target):
        node.save(one, "dgrad")
    return node.output(losses)


def _in_place_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    saved[0].tape.in_place("element_mul", saved[0])
    return [saved[0].detach()]


def _softmax_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    """The gradient in place of the fp32 softmax; autograd casts it to the logits' dtype."""
    tape = saved[0].tape
    tape.loads(saved[1])
    tape.empty("softmax_update", saved[1].shape, "fp32")
    tape.in_place("mul_", saved[0])
    grads.clear()  # a Python function's arguments go before autograd casts its result
    return [saved[0].detach()]


def mean_loss(losses: Tensor) -> Tensor:
    """The masked mean of losses (s, b): a scalar; the gradient is spread out again."""
    node = node_for(_mean_backward, losses)
    tape = losses.tape
    masked = out_like("mul.Tensor", losses)
    tape.loads(masked)
    out = tape.empty("sum", (ONE,), "fp32")
    del masked
    return node.output(out) if node else out


def _mean_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    return [gradient.tape.empty("mul.Tensor", node.inputs[0][0], "fp32")]


def zero_rows(x: Tensor, mask: Tensor) -> Tensor:
    """x[mask] = 0 in place: keeps the mask; the gradient is a copy with the same rows zeroed."""
    node = node_for(_zero_backward, x)
    out = x.detach()
    if node is None:
        return out
    node.save(mask, "dgrad")
    return node.output(out)


def _zero_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    return [out_like("index_put", gradient)]


def bias_dropout_add(x: Tensor, bias: Tensor | None, residual: Tensor, p: float) -> Tensor:
    """residual + dropout(x + bias) as one kernel: keeps the mask alone, one byte an element."""
    if not p and bias is None:
        return add(residual, x)
    inputs = (x, residual) if bias is None else (x, residual, bias)
    node = node_for(_bias_dropout_backward, *inputs)
    out = out_like("bias_dropout_add", residual)
    mask = x.tape.empty("bias_dropout_add", x.shape, "bool", x.order) if p else None
    if node is None:
        return out
    node.save(mask, "dgrad")
    return node.output(out)


def _bias_dropout_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    made = gradient if saved[0] is None else out_like("bias_dropout_add_back", gradient)
    results: Grads = [made, gradient]
    if len(node.inputs) > 2:
        gradient.tape.loads(made)
        results.append(gradient.tape.empty("sum", *node.inputs[2]))
    return results


def scaled_softmax(x: Tensor) -> Tensor:
    """FusedScaleMaskSoftmax over scores (b a, s, s): keeps its result, masks without a tensor."""
    node = node_for(_scaled_softmax_backward, x)
    out = out_like("scaled_upper_triang_masked_softmax", x)
    if node is None:
        return out
    node.save(out, "dgrad")
    return node.output(out)


def _scaled_softmax_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    """In place of the incoming gradient, as the CUDA kernel works."""
    gradient = grads[0]
    assert gradient is not None
    gradient.tape.in_place("scaled_upper_triang_masked_softmax_back", gradient, saved[0])
    return [gradient]
