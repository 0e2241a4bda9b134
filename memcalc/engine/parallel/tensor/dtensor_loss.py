"""A vocabulary that ranks share: the embedding's masked rows, and cross-entropy on a rank's logits.

Each rank looks up the ids that are among its rows and sums with the others; log-probabilities take
the ranks' largest logit and their sum of exponentials. The gradient of logits is made by the
likelihood's backward, the soft maximum's passes it on. A rank's gradient of the embedding has the
rows of all ranks: PyTorch cuts it where it is used. Symbols: T tokens, V vocabulary rows of this rank.
Source: PyTorch 2.13, torch/distributed/tensor/parallel/loss.py, placement_types.py (_MaskPartial) and
_ops/_embedding_ops.py. Checked by: oracle/test_tensor_parallel.py.
"""

from __future__ import annotations

from typing import Any

from memcalc.engine.aten.fused import looked_up
from memcalc.engine.aten.pointwise import out_like
from memcalc.engine.autograd import Grads, Node, node_for
from memcalc.engine.ledger import note_collective
from memcalc.engine.parallel.tensor.dtensor import AXIS
from memcalc.engine.sizes import ONE, Size
from memcalc.engine.tensors import Shape, Tape, Tensor, bytes_of


def masked_ids(tape: Tape, shape: Shape) -> tuple[Tensor, Tensor]:
    """Which ids are not this rank's (a byte each), and the ids counted from its first row."""
    below = tape.empty("lt.Scalar", shape, "bool")
    above = tape.empty("ge.Scalar", shape, "bool")
    mask = tape.empty("__or__.Tensor", shape, "bool")
    del below, above
    copied = tape.empty("clone", shape, "int64")
    shifted = tape.empty("sub.Tensor", shape, "int64")
    del copied
    return mask, shifted


def embedding(weight: Tensor, ids: Tensor, ranks: Size) -> Tensor:
    """Rows of this rank's weight (V, h) by id, zero for ids of other ranks: a term of their sum."""
    node = node_for(_embedding_backward, weight)
    if node:
        node.save(ids, "wgrad")
        node.inputs = [((weight.shape[0] * ranks, weight.shape[1]), weight.dtype)]
    tape = weight.tape
    mask, own = masked_ids(tape, ids.shape)
    if tape.record is not None:
        tape.record.input_shape = ids.shape
    looked_up(weight, ids)
    out = tape.empty("embedding", (*ids.shape, weight.shape[1]), weight.dtype)
    del own, mask
    return node.output(out) if node else out


def _embedding_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    shape, dtype = node.inputs[0]
    saved[0].tape.loads(grads[0], grads[0], saved[0])
    return [saved[0].tape.empty("embedding_dense_backward", shape, dtype)]


def log_softmax(x: Tensor) -> Tensor:
    """Log-probabilities of logits (T, V), computed in fp32, in x's dtype: keeps its result."""
    node = node_for(_log_softmax_backward, x)
    out = _shifted_log(x if x.dtype == "fp32" else out_like("_to_copy", x, "fp32"), x.dtype)
    if node:
        node.save(out, "dgrad")
        return node.output(out)
    return out


def _shifted_log(wide: Tensor, dtype: str) -> Tensor:
    """x - max - log(sum(exp(x - max))), maximum and sum those of all ranks."""
    tape, column = wide.tape, (*wide.shape[:-1], ONE)
    tape.loads(wide)
    largest = _reduced(tape.empty("amax", column, "fp32"))
    shifted = out_like("sub.Tensor", wide)
    powers = out_like("exp", wide)
    tape.loads(powers)
    total = tape.empty("sum.dim_IntList", column, "fp32")
    del powers
    total = _reduced(total)
    logarithm = out_like("log", total)
    out = out_like("sub.Tensor", wide)
    if dtype != "fp32":
        out = out_like("_to_copy", wide, dtype)
    del shifted, largest, total, logarithm
    return out


def _reduced(x: Tensor) -> Tensor:
    note_collective(x.tape, "all_reduce", bytes_of(x.shape, x.dtype), AXIS)
    return out_like("all_reduce", x)


def _log_softmax_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    """The gradient is that of the logits already, but for its dtype."""
    gradient = grads[0]
    assert gradient is not None
    dtype = node.inputs[0][1]
    return [gradient if gradient.dtype == dtype else out_like("_to_copy", gradient, dtype)]


def nll_loss(log_probs: Tensor, labels: Tensor, mean: bool) -> Tensor:
    """Sum or mean of the negative log-likelihood: a scalar; the total weight is kept with the input."""
    node = node_for(_nll_backward, log_probs)
    if node:
        node.meta = mean
        node.save(log_probs, "dgrad")
        node.save(labels, "dgrad")
    out, weight = _likelihood(log_probs.tape, labels.shape, log_probs.dtype, mean)
    if node is None:
        return out
    node.save(weight, "dgrad")
    return node.output(out)


def _likelihood(tape: Tape, tokens: Shape, dtype: str, mean: bool) -> tuple[Tensor, Tensor]:
    """(loss, total weight): each rank picks the tokens of its rows, all sum."""
    safe = _where_counted(tape, tokens, "int64")
    mask, own = masked_ids(tape, tokens)
    picked = tape.empty("gather", tokens, dtype)
    del mask
    summed = _reduced(picked)
    negative = tape.empty("neg", tokens, dtype)
    result = _where_counted(tape, tokens, dtype)
    del negative
    counted = tape.empty("ne.Scalar", tokens, "bool")
    count = tape.empty("sum", (ONE,), "int64")
    del counted
    weight = tape.empty("_to_copy", (ONE,), dtype)
    del count
    out = tape.empty("sum", (ONE,), dtype)
    if mean:
        out = tape.empty("div.Tensor", (ONE,), dtype)
    del result, safe, own, picked, summed
    return out, weight


def _where_counted(tape: Tape, shape: Shape, dtype: str) -> Tensor:
    """A tensor with zero where a token's label is to be ignored."""
    counted = tape.empty("ne.Scalar", shape, "bool")
    out = tape.empty("where.ScalarOther", shape, dtype)
    del counted
    return out


def _nll_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    """(softmax - one hot) times the loss's gradient, in six tensors of the logits' size in turn."""
    log_probs, labels = saved[0], saved[1]
    tape, dtype, tokens = log_probs.tape, log_probs.dtype, labels.shape
    scaled = tape.empty("div.Tensor", (ONE,), dtype) if node.meta else None
    safe = _where_counted(tape, tokens, "int64")
    tape.loads()
    hot = out_like("zeros_like", log_probs)
    mask, own = masked_ids(tape, tokens)
    counted = tape.empty("_to_copy", tokens, dtype)
    update = tape.empty("sub.Tensor", tokens, dtype)
    del counted
    rows = tape.empty("arange", tokens, "int64")
    factor = _where_counted(tape, tokens, dtype)
    del scaled
    powers = out_like("exp", log_probs)
    tape.loads(powers, hot)
    total = out_like("add.Tensor", log_probs)
    del powers
    out = out_like("mul.Tensor", log_probs)
    del total, hot, safe, mask, own, update, rows, factor
    return [out]
