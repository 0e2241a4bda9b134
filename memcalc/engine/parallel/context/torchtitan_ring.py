"""Ring attention inside a compiled block: the graph's kernels, and the buffers of its transfers.

The compiler takes the ring's steps into the block's graph. Here they are one kernel that makes output
and log-sum-exp, and values that live no longer than it does: keys and values of all ranks, two fp32
outputs that are merged, in backward fp32 gradients and the pair that goes from rank to rank. A closed
form: the order of the steps is the compiler's own.
Symbols: c ranks of the ring; query (b, a, s, d), key and value (b, k, s, d) of a rank's positions.
Source: PyTorch 2.13, torch/distributed/tensor/experimental/_context_parallel/_attention.py.
Checked by: unit/test_stack_torchtitan.py, against the ring written out (context_ring.py).
"""

from __future__ import annotations

from typing import Any

from memcalc.engine.aten.fused import attention_ran
from memcalc.engine.aten.pointwise import out_like
from memcalc.engine.autograd import Grads, Node, node_for
from memcalc.engine.ledger import note_collective
from memcalc.engine.tensors import Tensor, bytes_of

_NAME = "_scaled_dot_product_flash_attention"
_RING = "_scaled_dot_product_ring"


def compiled_ring(query: Tensor, key: Tensor, value: Tensor, ranks: int) -> Tensor:
    """softmax(q k^T) v over the whole sequence: (b, a, s, d). Keeps q, k, v, output, log-sum-exp."""
    tape = query.tape
    node = node_for(_ring_backward, query, key, value)
    if node:
        for tensor in (query, key, value):
            node.save(tensor, "dgrad")
    pair = key.numel + value.numel
    note_collective(tape, "all_gather", bytes_of((pair * ranks,), query.dtype), "cp", "forward/n")
    gathered = tape.empty(f"{_RING}_gathered", (pair * ranks,), query.dtype)
    merged = tape.empty(f"{_RING}_merged", (query.numel * 2,), "fp32")
    tape.using((query, key, value, gathered, merged))
    for _ in range(ranks):
        tape.ran(attention_ran("flash", "forward", query, key, value))
    out = out_like(_NAME, query)
    lse = tape.empty(_NAME, query.shape[:3], "fp32")
    if node is None:
        return out
    node.meta = ranks
    node.save(out, "dgrad")
    node.save(lse, "dgrad")
    return node.output(out)


def _ring_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    query, key, value = saved[:3]
    tape, ranks = query.tape, node.meta
    pair = key.numel + value.numel
    note_collective(tape, "all_gather", bytes_of((pair * ranks,), query.dtype), "cp", "backward/n")
    for _ in range(ranks):
        note_collective(tape, "send", bytes_of((pair,), "fp32"), "cp", "backward/n")
    gathered = tape.empty(f"{_RING}_gathered", (pair * ranks,), query.dtype)
    wide = tape.empty(f"{_RING}_gradients", (query.numel + pair * 3,), "fp32")
    tape.using((gradient, *saved, gathered, wide))
    for _ in range(ranks):
        tape.ran(attention_ran("flash", "dgrad", query, key, value))
    return [out_like(f"{_NAME}_backward", tensor) for tensor in (query, key, value)]
