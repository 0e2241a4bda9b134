"""Fused kernels: attention, norms, embedding, cross-entropy.

Sizes of what each returns and keeps are those of the kernels' meta functions in PyTorch.
"""

from __future__ import annotations

from typing import Any

from memcalc.engine.aten.matmul import dispatched
from memcalc.engine.aten.pointwise import out_like
from memcalc.engine.aten.shape import raw_permute
from memcalc.engine.autograd import Grads, Node, node_for
from memcalc.engine.kernel_log import Ran
from memcalc.engine.kernel_log import attention as attention_kernel
from memcalc.engine.sizes import ONE, number
from memcalc.engine.tensors import Shape, Tensor, bytes_of

_HEADS_INSIDE = (0, 2, 1, 3)  # memory order of (b, a, s, d) when tokens lie outside heads


def attention_ran(kernel: str, part: str, query: Tensor, key: Tensor, value: Tensor) -> Ran:
    """What a kernel does on q (b, a, s_q, d), k and v (b, k, s_kv, d); part: forward | dgrad."""
    name = f"_scaled_dot_product_{kernel}_attention{'' if part == 'forward' else '_backward'}"
    b, a, s_q, d = query.shape
    shape = (b, a, key.shape[1], s_q, key.shape[2], d, value.shape[3])
    return attention_kernel(name, part, shape, query.dtype)


def flash_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """FlashAttention-2's kernel: keeps q, k, v, the output, one fp32 log-sum-exp a query, RNG state.

    Shapes: query (b, a, s_q, d), key and value (b, k, s_kv, d). FLOPs: 4 b a s_q s_kv d forward over
    the full square, 2.5 times that backward (five products, the scores among them computed anew).
    Source: Dao 2023 (arXiv:2307.08691). Checked by: oracle/test_torch_events.py.
    """
    return _attention("flash", query, key, value)


def efficient_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None
) -> Tensor:
    """The memory-efficient kernel: as flash, its log-sum-exp padded to a multiple of 32 queries.

    bias (1, a, s_q, s_kv) is added to the scores and kept; where it needs a gradient, backward makes that
    for every sequence, its rows as long in memory as the bias's own.
    """
    return _attention("efficient", query, key, value, bias)


def cudnn_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """cuDNN's kernel: as flash, with a log-sum-exp (b, a, s, 1) and two RNG scalars."""
    return _attention("cudnn", query, key, value)


def attention_extras(kernel: str, query: Tensor) -> list[tuple[Shape, str]]:
    """What a kernel makes beside its output: log-sum-exp of every query, and RNG state."""
    b, a, s, _ = query.shape
    scalars: list[tuple[Shape, str]] = [((ONE,), "int64"), ((ONE,), "int64")]
    if kernel == "efficient":
        return [((b, a, s.over(32) * 32), "fp32"), *scalars]
    if kernel == "cudnn":
        return [((b, a, s, ONE), "fp32"), *scalars]
    if query.tape.device == "cpu":  # the CPU's flash kernel has no dropout and keeps no RNG state
        return [((b, a, s), "fp32")]
    return [((b, a, s), "fp32"), ((number(2),), "int64"), ((ONE,), "int64")]


def _attention(
    kernel: str, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None
) -> Tensor:
    tape = query.tape
    read = (query, key, value) if bias is None else (query, key, value, bias)
    node = node_for(_attention_backward, *read)
    if node:
        for tensor in read:
            node.save(tensor, "dgrad")
    ran = attention_ran(kernel, "forward", query, key, value)
    order = attention_order(kernel, query)
    shape = (*query.shape[:3], value.shape[3])
    made = (tuple(shape[i] for i in order), query.dtype)
    raw, *rest = dispatched(tape, ran, [made, *attention_extras(kernel, query)])
    out = raw_permute(raw, tuple(order.index(i) for i in range(4)))
    del raw
    if node is None:
        return out
    node.meta = kernel
    for tensor in (out, *rest):
        node.save(tensor, "dgrad")
    return node.output(out)


def _attention_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    query, key, value = saved[:3]
    query.tape.ran(attention_ran(node.meta, "dgrad", query, key, value))
    results = attention_gradients(node.meta, (query, key, value))
    if len(node.needs) == 3:
        return results
    return [*results, _bias_gradient(query, saved[3]) if node.needs[3] else None]


def _bias_gradient(query: Tensor, bias: Tensor) -> Tensor:
    """The gradient of a bias on the scores, (b, a, s_q, s_kv), over the bias's rows."""
    name = "_scaled_dot_product_efficient_attention_backward"
    row = bias.shape[3] if bias.is_dense else bias.strides[2]
    whole = query.tape.empty(name, (*bias.shape[:3], row), bias.dtype)
    strides = None if row is bias.shape[3] else whole.strides
    return whole.view_as(bias.shape, None, strides)


def attention_order(kernel: str, query: Tensor) -> tuple[int, ...]:
    """In which order the dims of a kernel's output lie in memory, outermost first."""
    return _HEADS_INSIDE if kernel == "efficient" else query.order or (0, 1, 2, 3)


def attention_gradients(kernel: str, qkv: tuple[Tensor, ...]) -> Grads:
    """What a kernel's backward makes: gradients of q, k and v."""
    make = _tokens_outside if kernel == "efficient" else out_like
    name = f"_scaled_dot_product_{kernel}_attention_backward"
    return [make(name, tensor) for tensor in qkv]


def _tokens_outside(name: str, tensor: Tensor) -> Tensor:
    """A gradient laid out tokens outside heads, whatever the layout of its input."""
    b, a, s, d = tensor.shape
    return raw_permute(tensor.tape.empty(name, (b, s, a, d), tensor.dtype), _HEADS_INSIDE)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """CUDA's layer norm: keeps x and two fp32 statistics a token; backward is one kernel."""
    inputs = (x, weight) if bias is None else (x, weight, bias)
    node = node_for(_norm_backward, *inputs)
    if node:
        node.meta = "native_layer_norm_backward"
        node.save(x, "both")
    out = out_like("native_layer_norm", x)
    statistics_dtype = "fp32" if x.tape.device == "cuda" else x.dtype
    stats = (*x.shape[:-1], ONE)
    mean = x.tape.empty("native_layer_norm", stats, statistics_dtype)
    rstd = x.tape.empty("native_layer_norm", stats, statistics_dtype)
    if node is None:
        return out
    node.save(mean, "both")
    node.save(rstd, "both")
    node.save(weight, "dgrad")
    if bias is not None:
        node.save(bias, "dgrad")
    return node.output(out)


def fused_rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """CUDA's fused RMSNorm: keeps x and one fp32 statistic a token; backward is one kernel."""
    node = node_for(_norm_backward, x, weight)
    if node:
        node.meta = "_fused_rms_norm_backward"
        node.save(x, "both")
    out = out_like("_fused_rms_norm", x)
    rstd = x.tape.empty("_fused_rms_norm", (*x.shape[:-1], ONE), "fp32")
    if node is None:
        return out
    node.save(rstd, "both")
    node.save(weight, "dgrad")
    return node.output(out)


def _norm_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    x, gradient = saved[0], grads[0]
    x.tape.loads(gradient, *saved, gradient, x)  # one kernel for x, one for weight and bias
    return [
        x.tape.empty(node.meta, shape, dtype) if need else None
        for (shape, dtype), need in zip(node.inputs, node.needs, strict=True)
    ]


def embedding(weight: Tensor, ids: Tensor) -> Tensor:
    """Rows of weight (V, h) by token id; backward makes a dense gradient of the whole table."""
    node = node_for(_embedding_backward, weight)
    if node:
        node.save(ids, "wgrad")
    shape = (*ids.shape, weight.shape[1])
    if weight.tape.record is not None:
        weight.tape.record.input_shape = ids.shape
    looked_up(weight, ids)
    out = weight.tape.empty("embedding", shape, weight.dtype)
    return node.output(out) if node else out


def looked_up(weight: Tensor, ids: Tensor) -> None:
    """What a lookup reads: a row a token, not the table."""
    rows = bytes_of((*ids.shape, weight.shape[1]), weight.dtype)
    weight.tape.loads_bytes(rows + bytes_of(ids.shape, ids.dtype))


def _embedding_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    shape, dtype = node.inputs[0]
    saved[0].tape.loads(grads[0], grads[0], saved[0])  # each row is read, and added to the table
    return [saved[0].tape.empty("embedding_dense_backward", shape, dtype)]


def log_softmax(x: Tensor) -> Tensor:
    """Log-probabilities over the last dim: keeps its result."""
    node = node_for(_log_softmax_backward, x)
    out = out_like("_log_softmax", x)
    if node:
        node.save(out, "dgrad")
        return node.output(out)
    return out


def _log_softmax_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    return [out_like("_log_softmax_backward_data", saved[0])]


def nll_loss(log_probs: Tensor, labels: Tensor) -> Tensor:
    """Mean negative log-likelihood: a scalar, and the total weight, kept with the input."""
    node = node_for(_nll_backward, log_probs)
    if node:
        node.save(log_probs, "dgrad")
        node.save(labels, "dgrad")
    tape = log_probs.tape
    tape.loads(labels)
    out = tape.empty("nll_loss_forward", (ONE,), log_probs.dtype)
    weight = tape.empty("nll_loss_forward", (ONE,), log_probs.dtype)
    if node is None:
        return out
    node.save(weight, "dgrad")
    return node.output(out)


def _nll_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    saved[0].tape.loads(saved[1])  # zeros, and one entry a row
    return [out_like("nll_loss_backward", saved[0])]
