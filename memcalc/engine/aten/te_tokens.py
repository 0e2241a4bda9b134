"""Token rows on their way to experts and back: Transformer Engine's permutation kernels.

Rows are copied into a new tensor at each stage; what autograd keeps are the maps between rows and
places, never the rows. Probabilities travel beside the rows.
Shapes: tokens (T, h), map (T, E), R rows of width h, probabilities (R).
Source: TransformerEngine 2.11, pytorch/permutation.py, triton/permutation.py; Megatron-Core 0.14,
transformer/moe/moe_utils.py (RouterGatingLinearFunction), fusions/fused_bias_swiglu.py.
Checked by: oracle/test_megatron_experts.py, unit/test_megatron_ops.py.
"""

from __future__ import annotations

from typing import Any

from memcalc.engine.aten.shape import filled
from memcalc.engine.aten.te_linear import gemm, input_product, weight_product
from memcalc.engine.autograd import Grads, Node, node_for
from memcalc.engine.kernel_log import read_bytes
from memcalc.engine.sizes import Size, product
from memcalc.engine.tensors import Shape, Tape, Tensor, bytes_of


def gate(x: Tensor, weight: Tensor, dtype: str | None = None) -> Tensor:
    """Router logits (T, E) in a dtype: keeps x as it is; both gradients are tensors of their own.

    In fp32 the product reads 16-bit operands; backward makes fp32 copies of weight and x.
    """
    node = node_for(_gate_backward, x, weight)
    out = gemm(x, weight, x.shape[:-1], dtype)
    if node is None:
        return out
    node.save(x, "wgrad")
    return node.output(out)


def _gate_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    tape, wide, x = gradient.tape, gradient.dtype, saved[0]
    (_, narrow), weight = node.inputs
    rows = product(x.shape[:-1])
    tape.loads_bytes(bytes_of(*weight))
    copy = None if wide == weight[1] else tape.empty("_to_copy", weight[0], wide)
    input_product(gradient, weight[0], rows)
    grad_input = tape.empty("gemm", x.shape, wide)
    del copy
    tape.loads(x)
    copy = None if wide == narrow else tape.empty("_to_copy", x.shape, wide)
    weight_product(gradient, weight[0], rows)
    grad_weight = tape.empty("gemm", weight[0], wide)
    del copy
    if wide != narrow:
        tape.loads(grad_input)
        grad_input = tape.empty("_to_copy", x.shape, narrow)
        tape.loads(grad_weight)
        grad_weight = tape.empty("_to_copy", *weight)
    return [grad_input, grad_weight]


def permute(tokens: Tensor, probs: Tensor, rows: Size) -> tuple[Tensor, Tensor, Tensor]:
    """Rows grouped by expert (R, h), their probabilities (R), and the map, which is kept.

    The map has 2 E + 1 int32 a token.
    """
    node = node_for(_permute_backward, tokens, probs)
    tape = tokens.tape
    width = probs.shape[-1] * 2 + 1
    tape.loads(probs)
    places = tape.empty("make_row_id_map", (tokens.shape[0], width), "int32")
    tape.loads_bytes(bytes_of((rows, tokens.shape[1]), tokens.dtype) + read_bytes(places))
    out = tape.empty("permute", (rows, tokens.shape[1]), tokens.dtype)
    chances = tape.empty("permute", (rows,), probs.dtype)
    if node is None:
        return out, chances, places
    node.save(places, "dgrad")
    return node.output(out), node.output(chances), places


def _permute_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    """autograd hands the function zeros for its third result, the map, too."""
    places = saved[0]
    unused = filled(places.tape, "zeros", places.shape, places.dtype)
    places.tape.loads(*grads[:2], places)
    made: Grads = [places.tape.empty("unpermute", shape, dtype) for shape, dtype in node.inputs]
    del unused
    return made


def unpermute(rows: Tensor, places: Tensor, tokens: Size) -> Tensor:
    """Sums of each token's rows (T, h): keeps the map."""
    node = node_for(_unpermute_backward, rows)
    out = rows.tape.empty("unpermute", (tokens, rows.shape[1]), rows.dtype)
    if node is None:
        return out
    node.save(places, "dgrad")
    return node.output(out)


def _unpermute_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    shape, dtype = node.inputs[0]
    return [saved[0].tape.empty("permute", shape, dtype)]


def sort_chunks(*parts: Tensor) -> tuple[Tensor, ...]:
    """Chunks of rows, and of what travels beside them, in another order: keeps an int32 a row."""
    node = node_for(_sort_backward, *parts)
    tape = parts[0].tape
    order = filled(tape, "make_chunk_sort_map", (parts[0].shape[0],), "int32")
    tape.loads(*parts, order)
    made = tuple(tape.empty("sort_chunks", one.shape, one.dtype) for one in parts)
    if node is None:
        return made
    node.save(order, "dgrad")
    return tuple(node.output(one) for one in made)


def _sort_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    tape = saved[0].tape
    return [tape.empty("sort_chunks", shape, dtype) for shape, dtype in node.inputs]


def laid_anew(x: Tensor) -> Tensor:
    """Chunks of one length in another order: a copy each way, nothing kept."""
    node = node_for(_laid_backward, x)
    out = x.tape.empty("clone", x.shape, x.dtype)
    return node.output(out) if node else out


def _laid_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    return [gradient.tape.empty("clone", gradient.shape, gradient.dtype)]


def fused_activation(x: Tensor, *beside: Tensor, gated: bool) -> Tensor:
    """An activation as one kernel, with a bias or with each row's probability: keeps all it reads.

    gated: act(x1) x2 of the halves. One gradient tensor serves x and a bias, whose sum is taken after.
    Source: Megatron-Core 0.14, fusions/fused_bias_swiglu.py, fused_bias_gelu.py.
    """
    node = node_for(_activation_backward, x, *beside)
    name = "swiglu" if gated else "bias_gelu"
    width = _half(x.shape[-1]) if gated else x.shape[-1]
    out = x.tape.empty(name, (*x.shape[:-1], width), x.dtype)
    if node is None:
        return out
    for one in (x, *beside):
        node.save(one, "dgrad")
    node.meta = name
    return node.output(out)


def _half(width: Size) -> Size:
    return width.over(2)


def _activation_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    x, *beside = saved
    made = x.tape.empty(f"{node.meta}_back", x.shape, x.dtype)
    results: Grads = [made]
    for one in beside:
        is_bias = len(one.shape) == 1 and one.shape[0] is x.shape[-1]
        own = made if is_bias else x.tape.empty(f"{node.meta}_back", one.shape, one.dtype)
        results.append(own)
    grads.clear()  # a Python function's arguments go before autograd sums the bias's gradient
    return results


def scattered(values: Tensor, places: Tensor, shape: Shape) -> Tensor:
    """Probabilities (T, t) put into zeros (T, E): keeps the places; the gradient is gathered by them."""
    node = node_for(_scatter_backward, values)
    tape = values.tape
    zeros = filled(tape, "zeros_like", shape, values.dtype)
    tape.loads(zeros, values, places)
    out = tape.empty("scatter", shape, values.dtype)
    del zeros
    if node is None:
        return out
    node.save(places, "dgrad")
    return node.output(out)


def marked(tape: Tape, logits: Tensor) -> Tensor:
    """The map (T, E) of one byte an entry: zeros as logits, as int32, with ones, as booleans."""
    zeros = filled(tape, "zeros_like", logits.shape, logits.dtype)
    tape.loads(zeros)
    counted = tape.empty("_to_copy", logits.shape, "int32")
    del zeros
    tape.loads(counted)
    ones = tape.empty("scatter", logits.shape, "int32")
    del counted
    tape.loads(ones)
    chosen = tape.empty("_to_copy", logits.shape, "bool")
    del ones
    return chosen


def _scatter_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    shape, dtype = node.inputs[0]
    return [saved[0].tape.empty("gather", shape, dtype)]


def beyond_capacity(
    probs: Tensor, chosen: Tensor, capacity: Size, pads: bool
) -> tuple[Tensor, Tensor]:
    """Probabilities and map (T, E) with only the `capacity` best rows of each expert: keeps the map.

    pads: each expert takes that many rows, chosen or not.
    """
    node = node_for(_capacity_backward, probs)
    tape, picked = probs.tape, (capacity, probs.shape[1])
    tape.loads(probs)
    best = [tape.empty("topk", picked, dtype) for dtype in (probs.dtype, "int64")]
    zeros = filled(tape, "zeros_like", probs.shape, probs.dtype)
    tape.loads(zeros)
    marked = tape.empty("scatter", probs.shape, probs.dtype)
    del zeros
    tape.loads(marked)
    mask = tape.empty("_to_copy", probs.shape, "bool")
    del marked
    tape.loads(mask, chosen)
    final = mask if pads else tape.empty("logical_and", chosen.shape, "bool")
    tape.loads(probs, final)
    out = tape.empty("mul.Tensor", probs.shape, probs.dtype)
    del best
    if node is None:
        return out, final
    node.save(final, "dgrad")
    return node.output(out), final


def _capacity_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    return [gradient.tape.empty("mul.Tensor", gradient.shape, gradient.dtype)]
