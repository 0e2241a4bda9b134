"""torchtune's head and losses: fp32 logits, or chunks of the sequence whose 16-bit logits all stay.

With chunks the head runs on every one before the loss sees the first, and the list of logits lives
until the loss returns; the loss works on an fp32 copy of one chunk at a time. With --compile its
cross-entropy of a chunk is compiled, which stores no fp32 logits at all.
Source: pytorch/torchtune torchtune/modules/transformer.py (unembed, chunked_output),
torchtune/modules/loss/ce_chunked_output_loss.py, torchtune/training/_compile.py.
Checked by: oracle/test_own_layers.py.
"""

from __future__ import annotations

from memcalc.engine.aten.fused import log_softmax, nll_loss
from memcalc.engine.aten.pointwise import add_in_place, scale, to
from memcalc.engine.aten.shape import narrow, reshape
from memcalc.engine.blocks.compiled_loss import compiled_cross_entropy
from memcalc.engine.blocks.loss import head
from memcalc.engine.build import Build
from memcalc.engine.sizes import ONE, Size
from memcalc.engine.tensors import Tensor


def torchtune_logits(build: Build, hidden: Tensor) -> list[Tensor]:
    """Logits of the normed hidden states (b, s, h): fp32, or those of every chunk in 16 bit."""
    if build.kernels.loss == "chunked":
        parts = [narrow(hidden, size, 1) for size in _sizes(build)]
        return [head(build, part) for part in parts]
    return [to(head(build, hidden), "fp32")]


def torchtune_loss(build: Build, logits: list[Tensor], labels: Tensor) -> Tensor:
    """Mean cross-entropy; of chunks their sum divided by the number of tokens."""
    build.tape.phase = "loss"
    build.at("loss", "loss")
    rows = [reshape(x, (x.shape[0] * x.shape[1], build["V"])) for x in logits]
    if build.kernels.loss != "chunked":
        return nll_loss(log_softmax(rows[0]), labels.view_as(rows[0].shape[:1], None, None))
    targets = [_targets(build, labels, chunk) for chunk in rows]
    total: Tensor | None = None
    for chunk, target in zip(rows, targets, strict=True):
        one = _chunk_loss(build, chunk, target)
        total = one if total is None else add_in_place(total, one)
    assert total is not None
    return scale(total, "div.Tensor")


def _targets(build: Build, labels: Tensor, rows: Tensor) -> Tensor:
    """Labels of a chunk, (tokens): of several samples a copy, of one a view."""
    shape = rows.shape[:1]
    if build["b"] is ONE:
        return labels.view_as(shape, None, labels.strides[1:])
    return labels.tape.empty("clone", shape, labels.dtype)


def _chunk_loss(build: Build, rows: Tensor, labels: Tensor) -> Tensor:
    if build.kernels.compiled:
        return compiled_cross_entropy(rows, labels, mean=False)
    wide = to(rows, "fp32")  # lives until the loss call returns
    return nll_loss(log_softmax(wide), labels)


def _sizes(build: Build) -> list[Size]:
    """Positions of each chunk, as torch.tensor_split cuts them; taken as equal but for the last."""
    n, s = build.kernels.loss_chunks, build["s"]
    part = s.over(n)
    return [part] * (n - 1) + [s - part * (n - 1)]
