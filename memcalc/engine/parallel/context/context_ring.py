"""Ring attention as PyTorch's context parallelism runs it: one rank's part of a causal sequence.

A rank has two chunks of each sequence, one from the front and one from the back (load balance). Keys and
values of all ranks are gathered once, flat; in step i the rank takes those of the rank i before it: all
its queries against their first chunk (i <= rank), or its second half against both (i > rank). Outputs and
log-sum-exps are merged in fp32. Backward adds up gradients in fp32; those of keys and values go around
from rank to rank. The steps are written as PyTorch's code has them, variable by variable, for these decide
how long a tensor lives.
Shapes: query (b, a, s, d), key and value (b, k, s, d) of a rank's s positions; c ranks.
Source: PyTorch 2.13, torch/distributed/tensor/experimental/_context_parallel/_attention.py; the merge:
Liu et al. 2023 (arXiv:2310.01889). Checked by: oracle/test_context_parallel.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from memcalc.engine.aten.fused import (
    attention_extras,
    attention_gradients,
    attention_order,
    attention_ran,
)
from memcalc.engine.aten.shape import raw_permute
from memcalc.engine.autograd import Grads, Node, node_for
from memcalc.engine.kernels import Contexts
from memcalc.engine.ledger import note_collective
from memcalc.engine.parallel.context.context_pieces import (
    accumulator,
    cast,
    contiguous,
    half,
    joined,
    pieces,
    updated,
    wide,
)
from memcalc.engine.tensors import Tensor, bytes_of

AXIS = "cp"


class _Ring(NamedTuple):
    """What a ring's backward must know of its forward."""

    kernel: str
    context: Contexts


def ring_attention(
    query: Tensor, key: Tensor, value: Tensor, kernel: str, context: Contexts
) -> Tensor:
    """softmax(q k^T) v of a rank's queries over the whole sequence: (b, a, s, d).

    Keeps q, k, v of the rank, the merged output and log-sum-exp, and the last step's RNG state. FLOPs
    are the rank's share of the full square, c times its s x s: each step counts as one s x s, of which
    it runs half (a causal square, or a whole one of half the keys or queries).
    """
    tape, name = query.tape, f"_scaled_dot_product_{kernel}_attention"
    node = node_for(_ring_backward, query, key, value)
    if node:
        for tensor in (query, key, value):
            node.save(tensor, "dgrad")

    def compute() -> tuple[Tensor, ...]:
        return _forward((query, key, value), kernel, context)

    out, *rest = tape.dispatch[-1].outputs(name, compute) if tape.dispatch else compute()
    if node is None:
        return out
    node.meta = _Ring(kernel, context)
    for tensor in (out, *rest):
        node.save(tensor, "dgrad")
    return node.output(out)


def _forward(qkv: tuple[Tensor, ...], kernel: str, context: Contexts) -> tuple[Tensor, ...]:
    """The merged output, its log-sum-exp, and the last kernel's RNG state."""
    query, key, value = qkv
    key, value = contiguous(key), contiguous(value)
    merged, gathered = _Merged(query.dtype), None
    ran = attention_ran(kernel, "forward", *qkv)
    for i in range(context.ranks):
        if i:
            key, value = pieces(gathered, key, value)
        if i < context.ranks - 1:
            next_kv: Tensor | None = joined(key, value)
            if gathered is None:
                gathered = _gathered(next_kv, context.ranks, "forward/n")
            next_kv = None
        if i == 0:
            q, kv = query, (key, value)
        elif i <= context.rank:
            q, kv = query, (half(key), half(value))
        else:
            q, kv = half(query), (key, value)
        query.tape.ran(ran)
        out, lse, *rest = _block(q, kv[1], kernel)
        merged.step(out, lse, i > context.rank)
    return (*merged.results(), *rest)


def _gathered(sent: Tensor | None, ranks: int, beside: str) -> Tensor:
    """Every rank's flat keys and values, one after the other, beside the first of n steps."""
    assert sent is not None
    shape = (sent.shape[0] * ranks,)
    note_collective(sent.tape, "all_gather", bytes_of(shape, sent.dtype), AXIS, beside)
    return sent.tape.empty("all_gather_into_tensor", shape, sent.dtype)


def _block(query: Tensor, value: Tensor, kernel: str) -> tuple[Tensor, ...]:
    """One kernel: output, log-sum-exp, RNG state."""
    tape, name = query.tape, f"_scaled_dot_product_{kernel}_attention"
    order = attention_order(kernel, query)
    shape = (*query.shape[:3], value.shape[3])
    raw = tape.empty(name, tuple(shape[i] for i in order), query.dtype)
    extras = tuple(tape.empty(name, one, dtype) for one, dtype in attention_extras(kernel, query))
    return (raw_permute(raw, tuple(order.index(i) for i in range(4))), *extras)


class _Merged:
    """Output and log-sum-exp of the steps so far, in fp32."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self.out: Tensor | None = None
        self.lse: Tensor | None = None

    def step(self, block_out: Tensor, block_lse: Tensor, partial: bool) -> None:
        """Merge a step's; partial: of the second half of the queries."""
        block_out = cast(block_out, "fp32")
        self._merge(block_out, block_lse, partial)

    def _merge(self, block_out: Tensor, block_lse: Tensor, partial: bool) -> None:
        if self.out is None or self.lse is None:
            self.out, self.lse = block_out, block_lse
            return
        lse = half(self.lse) if partial else self.lse
        out = half(self.out) if partial else self.out
        out = wide("sub.Tensor", out, _weighted(block_out, block_lse, out, lse))
        lse = wide("sub.Tensor", lse, wide("log_sigmoid", wide("sub.Tensor", lse, block_lse)))
        if not partial:
            self.lse, self.out = lse, out
            return
        self.lse = updated(self.lse)
        self.out = updated(self.out)

    def results(self) -> tuple[Tensor, Tensor]:
        """The output in the inputs' dtype, and the log-sum-exp."""
        assert self.out is not None and self.lse is not None
        return cast(self.out, self.dtype), self.lse


def _weighted(block_out: Tensor, block_lse: Tensor, out: Tensor, lse: Tensor) -> Tensor:
    """sigmoid(block_lse - lse) * (out - block_out)."""
    return wide(
        "mul.Tensor",
        wide("sigmoid", wide("sub.Tensor", block_lse, lse)),
        wide("sub.Tensor", out, block_out),
    )


def _ring_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    ring: _Ring = node.meta
    grad_out = grads[0]
    assert grad_out is not None
    query, key, value = saved[:3]
    return _backward((query, key, value), saved[4], ring.kernel, ring.context)


def _backward(qkv: tuple[Tensor, ...], logsumexp: Tensor, kernel: str, context: Contexts) -> Grads:
    query, key, value = qkv
    grad_query, grad_key, grad_value = (accumulator(x) for x in qkv)
    key, value = contiguous(key), contiguous(value)
    gathered = travelling = None
    ran = attention_ran(kernel, "dgrad", *qkv)
    alive: dict[str, Any] = {}  # variables that PyTorch's code has until it sets them anew
    for i in range(context.ranks):
        if i:
            key, value = pieces(gathered, key, value)
        if i < context.ranks - 1:
            alive["next_kv"] = joined(key, value)
            if gathered is None:
                gathered = _gathered(alive["next_kv"], context.ranks, "backward/n")
        if i == 0:
            operands = (query, key, value, logsumexp)
        elif i <= context.rank:
            operands = (query, half(key), half(value), logsumexp)
        else:
            operands = (half(query), key, value, contiguous(half(logsumexp)))
        query.tape.ran(ran)
        alive["made"] = attention_gradients(kernel, operands[:3])
        if i:
            alive["next_grad_kv"] = travelling
            grad_key, grad_value = pieces(travelling, grad_key, grad_value)
            if i <= context.rank:
                grad_key = updated(grad_key)
                grad_value = updated(grad_value)
        alive["next_grad_kv"] = joined(grad_key, grad_value)
        travelling = _sent_on(alive["next_grad_kv"])
        if i > context.rank:
            grad_query = updated(grad_query)
    assert travelling is not None
    grad_query = cast(grad_query, query.dtype)
    alive["next_grad_kv"] = both = cast(travelling, key.dtype)
    return [grad_query, *pieces(both, grad_key, grad_value)]


def _sent_on(sent: Tensor) -> Tensor:
    """What the rank before sends, while this rank sends its own to the one after."""
    note_collective(sent.tape, "send", bytes_of(sent.shape, sent.dtype), AXIS, "backward/n")
    return sent.tape.empty("all_to_all_single", sent.shape, sent.dtype)
