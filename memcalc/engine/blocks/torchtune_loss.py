"""torchtune's head and losses: fp32 logits, or chunks of the sequence whose 16-bit logits all stay.

With chunks the head runs on every one before the loss sees the first, and the list of logits lives
until the loss returns; the loss works on an fp32 copy of one chunk at a time. With --compile its
cross-entropy of a chunk is compiled, which stores no fp32 logits at all.
Source: pytorch/torchtune torchtune/modules/transformer.py (unembed, chunked_output),
torchtune/modules/loss/ce_chunked_output_loss.py, torchtune/training/_compile.py.
Checked by: unit/test_stack_torchtune.py.
"""

from __future__ import annotations

from memcalc.engine.aten.fused import log_softmax, nll_loss
from memcalc.engine.aten.pointwise import add_in_place, scale, to
from memcalc.engine.aten.shape import narrow, reshape
from memcalc.engine.blocks.compiled_loss import compiled_cross_entropy
from memcalc.engine.blocks.loss import head
from memcalc.engine.build import Build
from memcalc.engine.sizes import Size
from memcalc.engine.tensors import Tensor


def torchtune_loss(build: Build, hidden: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the normed hidden states (b, s, h)."""
    if build.kernels.loss == "chunked":
        return _in_chunks(build, hidden, labels)
    logits = to(head(build, hidden), "fp32")
    build.tape.phase = "loss"
    build.at("loss", "loss")
    tokens = build["b"] * build["s"]
    rows = reshape(logits, (tokens, build["V"]))
    return nll_loss(log_softmax(rows), labels.view_as((tokens,), None, None))


def _in_chunks(build: Build, hidden: Tensor, labels: Tensor) -> Tensor:
    """Sum over chunks of the sequence, divided by the number of tokens."""
    logits = [head(build, narrow(hidden, part, 1)) for part in _parts(build)]
    build.tape.phase = "loss"
    build.at("loss", "loss")
    total: Tensor | None = None
    for chunk in logits:
        tokens = chunk.shape[0] * chunk.shape[1]
        rows = reshape(chunk, (tokens, build["V"]))
        one = _chunk_loss(build, rows, labels.view_as((tokens,), None, labels.strides[1:]))
        total = one if total is None else add_in_place(total, one)
    assert total is not None
    return scale(total, "div.Tensor")


def _chunk_loss(build: Build, rows: Tensor, labels: Tensor) -> Tensor:
    if build.kernels.compiled:
        return compiled_cross_entropy(rows, labels, mean=False)
    wide = to(rows, "fp32")  # lives until the loss call returns
    return nll_loss(log_softmax(wide), labels)


def _parts(build: Build) -> list[Size]:
    """Positions of each chunk, as torch.tensor_split cuts them; taken as equal but for the last."""
    n, s = build.kernels.loss_chunks, build["s"]
    part = s.over(n)
    return [part] * (n - 1) + [s - part * (n - 1)]
