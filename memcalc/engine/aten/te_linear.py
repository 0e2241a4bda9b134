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

from typing import Any, Final, NamedTuple

from memcalc.engine.aten.collective import gathered, scattered, summed
from memcalc.engine.aten.matmul import dispatched
from memcalc.engine.autograd import Grads, Node, node_for
from memcalc.engine.kernel_log import gemm as product_of
from memcalc.engine.kernel_log import gemm_shape, grouped
from memcalc.engine.sizes import Size, product
from memcalc.engine.tensors import Shape, Tensor

#: Dims of a weight of experts.
_EXPERTS: Final = ("e", "o", "i")


class How(NamedTuple):
    """How a linear is divided, and where its weight's gradient goes.

    gathers: column-parallel under sequence parallelism, rows: (s, b) after the gather. scatters:
    row-parallel under sequence parallelism, rows: (s_t, b) after the scatter. sums: what tp ranks sum
    without it, output (row-parallel) or gradient (the input's, column-parallel).
    """

    gathers: bool = False
    scatters: bool = False
    rows: Shape = ()
    adds_in_place: bool = True
    sums: str = ""


class Weights(NamedTuple):
    """Parameters of one linear and of the norm fused before it: (weight,) or (weight, bias)."""

    linear: tuple[Tensor, ...]
    norm: tuple[Tensor, ...] = ()


class _Kept(NamedTuple):
    """What a backward rule needs beside its tensors."""

    how: How
    rows: Size  # that the product reads, gathered ones included
    weights: Weights


def gemm(x: Tensor, weight: Tensor, rows: Shape, dtype: str | None = None) -> Tensor:
    """The product of rows of x and the weight: (rows, o) in a dtype (x's own)."""
    shape, dims = (*rows, weight.shape[0]), (product(rows), weight.shape[0], x.shape[-1])
    ran = product_of("gemm", "forward", gemm_shape(*dims), x.dtype, dtype or x.dtype)
    (out,) = dispatched(x.tape, ran, [(shape, dtype or x.dtype)])
    record = x.tape.record
    if record is not None:
        record.input_shape, record.output_shape = (*rows, x.shape[-1]), shape
        record.gemms.append(dims)
    return out


def input_product(gradient: Tensor, weight: Shape, rows: Size, name: str = "gemm") -> None:
    """Note the product of a gradient and a weight (o, i): the input's gradient (rows, i)."""
    shape = gemm_shape(rows, weight[1], weight[0])
    gradient.tape.ran(product_of(name, "dgrad", shape, gradient.dtype))


def weight_product(
    gradient: Tensor, weight: Shape, rows: Size, adds: bool = False, name: str = "gemm"
) -> None:
    """Note the product of a gradient and an input: a weight's gradient (o, i).

    adds: to the fp32 buffer of gradients.
    """
    shape, out = gemm_shape(weight[0], weight[1], rows), "fp32" if adds else ""
    gradient.tape.ran(product_of(name, "wgrad", shape, gradient.dtype, out, adds))


def drop_saved(node: Node, saved: list[Any], index: int) -> None:
    """Free a saved tensor before the function returns (clear_tensor_data)."""
    assert node.saved is not None
    saved[index] = None
    node.saved[index] = (None, None)


def parameter_gradients(gradient: Tensor, params: tuple[Tensor, ...], kept: _Kept) -> Grads:
    """Gradients of weight and bias: the weight's added in place, or a tensor of its own."""
    tape, (weight, *biases) = gradient.tape, params
    if len(weight.shape) == len(_EXPERTS):
        adds = "fp32" if kept.how.adds_in_place else ""
        groups, o, i = weight.shape
        tape.ran(grouped("gemm", "wgrad", (groups, kept.rows, o, i), gradient.dtype, adds))
    else:
        weight_product(gradient, weight.shape, kept.rows, kept.how.adds_in_place)
    if kept.how.adds_in_place:
        own = tape.external(weight.shape, weight.dtype).detach()
    else:
        own = tape.empty("gemm", weight.shape, weight.dtype)
    return [own, *(tape.empty("gemm", bias.shape, bias.dtype) for bias in biases)]


def linear(x: Tensor, params: tuple[Tensor, ...], how: How = How()) -> Tensor:  # noqa: B008
    """te.Linear: keeps its input; with how.scatters the output is one rank's rows of the sum."""
    node = node_for(_linear_backward, x, *params)
    total = gathered(x, (*how.rows, x.shape[-1])) if how.gathers else x
    out = gemm(total, params[0], total.shape[:-1])
    rows = product(total.shape[:-1])
    del total
    result = scattered(out, (*how.rows, params[0].shape[0])) if how.scatters else out
    if how.sums == "output":
        summed(out)
    if node is None:
        return result
    node.save(x, "wgrad")
    node.meta = _Kept(how, rows, Weights(params))
    return node.output(result)


def _linear_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    incoming = grads[0]
    assert incoming is not None
    kept: _Kept = node.meta
    tape, how, x = incoming.tape, kept.how, saved[0]
    full = (*x.shape[:-1], incoming.shape[-1])
    gradient = gathered(incoming, full) if how.scatters else incoming
    total = gathered(x, (*how.rows, x.shape[-1]), "dgrad") if how.gathers else x
    result: Tensor | None = None
    if node.needs[0]:
        input_product(incoming, node.inputs[1][0], kept.rows)
        made = tape.empty("gemm", total.shape, incoming.dtype)
        result = _over_ranks(made, x.shape, how)
    others = parameter_gradients(gradient, kept.weights.linear, kept)
    del gradient, total
    return [result, *others]


def _over_ranks(made: Tensor, shape: Shape, how: How) -> Tensor:
    """The gradient of a linear's input over the ranks, beside the product of the weight's gradient."""
    if how.gathers:
        return scattered(made, shape, "wgrad")
    if how.sums == "gradient":
        summed(made, "wgrad")
    return made


def norm_linear(x: Tensor, weights: Weights, how: How = How()) -> Tensor:  # noqa: B008
    """te.LayerNormLinear: keeps its input, the normed rows and one or two fp32 statistics a row.

    Backward holds the product's whole gradient until the norm's own gradient is made.
    """
    node = node_for(_norm_linear_backward, x, *weights.norm, *weights.linear)
    normed, statistics = _normed(x, weights.norm)
    total = gathered(normed, (*how.rows, x.shape[-1])) if how.gathers else normed
    out = gemm(total, weights.linear[0], total.shape[:-1])
    rows = product(total.shape[:-1])
    del total
    if node is None:
        return out
    node.save(x, "dgrad")
    node.save(normed, "wgrad")
    for one in statistics:
        node.save(one, "dgrad")
    node.meta = _Kept(how, rows, weights)
    return node.output(out)


def _normed(x: Tensor, norm: tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor]]:
    """The normed rows, and the fp32 statistics: mean and inverse deviation, or the latter (RMS)."""
    name = "layernorm_fwd" if len(norm) > 1 else "rmsnorm_fwd"
    x.tape.loads(x, *norm)
    normed = x.tape.empty(name, x.shape, x.dtype)
    rows = (product(x.shape[:-1]),)
    return normed, [x.tape.empty(name, rows, "fp32") for _ in norm]


def _norm_linear_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    kept: _Kept = node.meta
    tape, how, x = gradient.tape, kept.how, saved[0]
    total = gathered(x, (*how.rows, x.shape[-1]), "dgrad") if how.gathers else saved[1]
    input_product(gradient, kept.weights.linear[0].shape, kept.rows)
    made = tape.empty("gemm", total.shape, gradient.dtype)  # held to the end
    inner = _over_ranks(made, x.shape, how)
    others = parameter_gradients(gradient, kept.weights.linear, kept)
    del total
    drop_saved(node, saved, 1)
    tape.loads(inner, x)
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
    (groups, o, i), rows = weight.shape, x.shape[0]
    ran = grouped("grouped_gemm", "forward", (groups, rows, o, i), x.dtype)
    (out,) = dispatched(x.tape, ran, [((rows, o), x.dtype)])
    if node is None:
        return out
    node.save(x, "wgrad")
    node.meta = _Kept(How(adds_in_place=adds_in_place), rows, Weights((weight,)))
    return node.output(out)


def _grouped_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    kept: _Kept = node.meta
    groups, o, i = kept.weights.linear[0].shape
    shape = (groups, kept.rows, i, o)
    gradient.tape.ran(grouped("grouped_gemm", "dgrad", shape, gradient.dtype))
    result = gradient.tape.empty("grouped_gemm", saved[0].shape, gradient.dtype)
    return [result, *parameter_gradients(gradient, kept.weights.linear, kept)]
