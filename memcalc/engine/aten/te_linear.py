"""Transformer Engine's linear layers: what their autograd functions save, make and free.

With weight gradients added in place the product writes into the fp32 gradient buffer, and the function
returns a dummy of the weight's shape that lives for the whole run (get_dummy_wgrad; counted with the
strategy's buffers). Under sequence parallelism a column-parallel linear keeps its rank's rows only and
gathers them again in backward.
Shapes: x (s, b, i) or a rank's rows of it, weight (o, i), T = s b tokens, R rows of experts.
Source: TransformerEngine 2.11, pytorch/module/layernorm_linear.py, linear.py, grouped_linear.py.
Checked by: unit/test_megatron_ops.py, unit/test_megatron_saved.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from memcalc.engine.aten.collective import gathered, scattered
from memcalc.engine.aten.matmul import count_flops, dispatched
from memcalc.engine.autograd import Grads, Node, node_for
from memcalc.engine.sizes import product
from memcalc.engine.tensors import Shape, Tensor


class How(NamedTuple):
    """How a linear is divided, and where its weight's gradient goes.

    gathers: column-parallel under sequence parallelism, rows: (s, b) after the gather. scatters:
    row-parallel under sequence parallelism, rows: (s_t, b) after the scatter.
    """

    gathers: bool = False
    scatters: bool = False
    rows: Shape = ()
    adds_in_place: bool = True


class Weights(NamedTuple):
    """Parameters of one linear and of the norm fused before it: (weight,) or (weight, bias)."""

    linear: tuple[Tensor, ...]
    norm: tuple[Tensor, ...] = ()


class _Kept(NamedTuple):
    """What a backward rule needs beside its tensors."""

    how: How
    flops: Any
    weights: Weights


def gemm(x: Tensor, weight: Tensor, rows: Shape, dtype: str | None = None) -> tuple[Tensor, Any]:
    """The product of rows of x and the weight: (rows, o) in a dtype (x's own), and its FLOPs."""
    shape = (*rows, weight.shape[0])
    flops = product(shape) * x.shape[-1] * 2
    (out,) = dispatched(x.tape, "gemm", [(shape, dtype or x.dtype)], flops)
    record = x.tape.record
    if record is not None:
        record.input_shape, record.output_shape = (*rows, x.shape[-1]), shape
        record.gemms.append((product(rows), weight.shape[0], x.shape[-1]))
    return out, flops


def drop_saved(node: Node, saved: list[Any], index: int) -> None:
    """Free a saved tensor before the function returns (clear_tensor_data)."""
    assert node.saved is not None
    saved[index] = None
    node.saved[index] = (None, None)


def parameter_gradients(gradient: Tensor, params: tuple[Tensor, ...], kept: _Kept) -> Grads:
    """Gradients of weight and bias: the weight's added in place, or a tensor of its own."""
    tape, (weight, *biases) = gradient.tape, params
    count_flops(tape, "wgrad", kept.flops)
    if kept.how.adds_in_place:
        own = tape.external(weight.shape, weight.dtype).detach()
    else:
        own = tape.empty("gemm", weight.shape, weight.dtype)
    return [own, *(tape.empty("gemm", bias.shape, bias.dtype) for bias in biases)]


def linear(x: Tensor, params: tuple[Tensor, ...], how: How = How()) -> Tensor:  # noqa: B008
    """te.Linear: keeps its input; with how.scatters the output is one rank's rows of the sum."""
    node = node_for(_linear_backward, x, *params)
    total = gathered(x, (*how.rows, x.shape[-1])) if how.gathers else x
    out, flops = gemm(total, params[0], total.shape[:-1])
    del total
    result = scattered(out, (*how.rows, params[0].shape[0])) if how.scatters else out
    if node is None:
        return result
    node.save(x, "wgrad")
    node.meta = _Kept(how, flops, Weights(params))
    return node.output(result)


def _linear_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    incoming = grads[0]
    assert incoming is not None
    kept: _Kept = node.meta
    tape, how, x = incoming.tape, kept.how, saved[0]
    full = (*x.shape[:-1], incoming.shape[-1])
    gradient = gathered(incoming, full) if how.scatters else incoming
    total = gathered(x, (*how.rows, x.shape[-1])) if how.gathers else x
    result: Tensor | None = None
    if node.needs[0]:
        count_flops(tape, "dgrad", kept.flops)
        made = tape.empty("gemm", total.shape, incoming.dtype)
        result = scattered(made, x.shape) if how.gathers else made
    others = parameter_gradients(gradient, kept.weights.linear, kept)
    del gradient, total
    return [result, *others]


def norm_linear(x: Tensor, weights: Weights, how: How = How()) -> Tensor:  # noqa: B008
    """te.LayerNormLinear: keeps its input, the normed rows and one or two fp32 statistics a row.

    Backward holds the product's whole gradient until the norm's own gradient is made.
    """
    node = node_for(_norm_linear_backward, x, *weights.norm, *weights.linear)
    normed, statistics = _normed(x, weights.norm)
    total = gathered(normed, (*how.rows, x.shape[-1])) if how.gathers else normed
    out, flops = gemm(total, weights.linear[0], total.shape[:-1])
    del total
    if node is None:
        return out
    node.save(x, "dgrad")
    node.save(normed, "wgrad")
    for one in statistics:
        node.save(one, "dgrad")
    node.meta = _Kept(how, flops, weights)
    return node.output(out)


def _normed(x: Tensor, norm: tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor]]:
    """The normed rows, and the fp32 statistics: mean and inverse deviation, or the latter (RMS)."""
    name = "layernorm_fwd" if len(norm) > 1 else "rmsnorm_fwd"
    normed = x.tape.empty(name, x.shape, x.dtype)
    rows = (product(x.shape[:-1]),)
    return normed, [x.tape.empty(name, rows, "fp32") for _ in norm]


def _norm_linear_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    kept: _Kept = node.meta
    tape, how, x = gradient.tape, kept.how, saved[0]
    total = gathered(x, (*how.rows, x.shape[-1])) if how.gathers else saved[1]
    count_flops(tape, "dgrad", kept.flops)
    made = tape.empty("gemm", total.shape, gradient.dtype)  # held to the end
    inner = scattered(made, x.shape) if how.gathers else made
    others = parameter_gradients(gradient, kept.weights.linear, kept)
    del total
    drop_saved(node, saved, 1)
    result, *norms = norm_gradients(x, kept.weights.norm)
    del inner, made
    return [result, *norms, *others]


def norm_gradients(x: Tensor, norm: tuple[Tensor, ...]) -> Grads:
    """Gradients of a norm's input and of its weight and bias."""
    tape = x.tape
    name = "layernorm_bwd" if len(norm) > 1 else "rmsnorm_bwd"
    made: Grads = [tape.empty(name, x.shape, x.dtype)]
    return [*made, *(tape.empty(name, one.shape, one.dtype) for one in norm)]


def norm(x: Tensor, params: tuple[Tensor, ...]) -> Tensor:
    """te.LayerNorm or te.RMSNorm: keeps its input and its statistics."""
    node = node_for(_norm_backward, x, *params)
    out, statistics = _normed(x, params)
    if node is None:
        return out
    node.save(x, "both")
    for one in statistics:
        node.save(one, "both")
    node.meta = params
    return node.output(out)


def _norm_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    return norm_gradients(saved[0], node.meta)


def grouped_linear(x: Tensor, weight: Tensor, adds_in_place: bool = True) -> Tensor:
    """te.GroupedLinear: rows of x (R, i), sorted by expert, times weight (e, o, i); keeps x."""
    node = node_for(_grouped_backward, x, weight)
    shape = (x.shape[0], weight.shape[1])
    flops = product(shape) * x.shape[-1] * 2
    (out,) = dispatched(x.tape, "grouped_gemm", [(shape, x.dtype)], flops)
    if node is None:
        return out
    node.save(x, "wgrad")
    node.meta = _Kept(How(adds_in_place=adds_in_place), flops, Weights((weight,)))
    return node.output(out)


def _grouped_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    kept: _Kept = node.meta
    count_flops(gradient.tape, "dgrad", kept.flops)
    result = gradient.tape.empty("grouped_gemm", saved[0].shape, gradient.dtype)
    return [result, *parameter_gradients(gradient, kept.weights.linear, kept)]
