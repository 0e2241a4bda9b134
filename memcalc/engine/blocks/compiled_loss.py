"""Cross-entropy under torch.compile: fp32 logits and log-probabilities are never stored.

The compiler keeps the 16-bit logits it was given, the largest logit and the logarithm of the sum of
each row (fp32, T each), and writes the gradient in the logits' own dtype in one kernel.
Symbols: T tokens, V vocabulary. Source: torch/_inductor of PyTorch 2.13.
Checked by: oracle/test_own_layers_compiled.py, against the compiler's CUDA programs.
"""

from __future__ import annotations

from typing import Any

from memcalc.engine.aten.pointwise import out_like
from memcalc.engine.autograd import Grads, Node, node_for
from memcalc.engine.sizes import ONE
from memcalc.engine.tensors import Tensor


def compiled_cross_entropy(logits: Tensor, labels: Tensor, mean: bool = True) -> Tensor:
    """Mean or sum of the cross-entropy of (T, V) logits, labels (T): a scalar in fp32.

    A mean keeps the number of tokens, four bytes, too.
    """
    node = node_for(_compiled_backward, logits)
    if node:
        node.save(logits, "dgrad")
        node.save(labels, "dgrad")
    tape, rows = logits.tape, (logits.shape[0], ONE)
    largest = tape.empty("amax", rows, "fp32")
    tape.covered("log")  # made by the same kernel
    total = tape.empty("log", rows, "fp32")
    tape.loads(labels)
    loss = tape.empty("nll_loss_forward", (ONE,), "fp32")
    weight = tape.empty("nll_loss_forward", (ONE,), "fp32") if mean else None
    if node is None:
        return loss
    for kept in (largest, total, weight):
        node.save(kept, "dgrad")
    return node.output(loss)


def _compiled_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    return [out_like("_log_softmax_backward_data", saved[0])]
