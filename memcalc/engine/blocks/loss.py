"""Final norm, head and cross-entropy, plain or in chunks of tokens."""

from __future__ import annotations

from memcalc.engine.aten.closed import fused_head_loss
from memcalc.engine.aten.fused import log_softmax, nll_loss
from memcalc.engine.aten.matmul import linear
from memcalc.engine.aten.pointwise import add, scale, tanh, to
from memcalc.engine.aten.shape import reshape, split
from memcalc.engine.blocks.compiled_loss import compiled_cross_entropy
from memcalc.engine.build import Build
from memcalc.engine.checkpoint import checkpoint
from memcalc.engine.parallel.tensor import dtensor_loss
from memcalc.engine.parallel.tensor.tensor_layers import whole_loss, whole_stream
from memcalc.engine.tensors import Tensor


def head(build: Build, hidden: Tensor) -> Tensor:
    """Logits (..., V): the embedding's transpose when tied."""
    build.at("lm_head", "head")
    if build.config.tie_word_embeddings:
        logits = _tied_head(build, hidden)
    else:
        features = (build["w"], build["V"])
        logits = build.linear(hidden, "lm_head", features, build.config.lm_head_bias)
    if build.config.final_logit_softcapping is None:
        return logits
    build.at("logit_softcap", "head")
    logits = scale(logits, "div.Tensor")
    logits = tanh(logits)
    return scale(logits)


def _tied_head(build: Build, hidden: Tensor) -> Tensor:
    bias = None
    if build.config.lm_head_bias:
        bias = build.cast_param(build.param("lm_head.bias", (build["V"],)))
    weight = build.cast_param(build.tape.leaves[f"{build.beside}embedding.weight"])
    x = to(hidden, build.kernels.compute_dtype) if build.kernels.autocast else hidden
    return linear(x, weight, bias)


def project_out(build: Build, hidden: Tensor) -> Tensor:
    """Hidden states as the head reads them: whole, as wide as the embedding (narrow in OPT-350m)."""
    if build["w"] is build["h"]:
        return whole_stream(build, hidden, "head_gather", "head")
    build.at("project_out", "head")
    return build.linear(hidden, "project_out", (build["h"], build["w"]), False)


def plain_loss(build: Build, logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of whole logits (b, s, V)."""
    build.tape.phase = "loss"
    tokens = build["b"] * build["s"]
    loss = cross_entropy(
        build,
        reshape(logits, (tokens, build["V"])),
        labels.view_as((tokens,), None, None),
        build.kernels.loss == "fp32",
    )
    return whole_loss(build, loss)


def cross_entropy(
    build: Build, logits: Tensor, labels: Tensor, upcast: bool, mean: bool = True
) -> Tensor:
    """Cross-entropy of (tokens, V) logits: the mean, or the sum of a chunk.

    Under CUDA autocast without an upcast, log_softmax is asked for its input's dtype, so the
    log-probabilities stay in 16 bit and the likelihood works on an fp32 cast of them.
    """
    build.at("loss", "loss")
    if build.kernels.compiled_loss and build.kernels.dtensor is None:
        return compiled_cross_entropy(logits, labels, mean)
    if upcast:
        wide = to(logits, "fp32")  # lives until the loss call returns
        return _likelihood(build, _log_softmax(build, wide), labels, mean)
    if build.kernels.autocast:
        log_probs = _log_softmax(build, logits)
        return _likelihood(build, to(log_probs, "fp32"), labels, mean)
    return _likelihood(build, _log_softmax(build, logits), labels, mean)


def _log_softmax(build: Build, logits: Tensor) -> Tensor:
    return dtensor_loss.log_softmax(logits) if build.kernels.dtensor else log_softmax(logits)


def _likelihood(build: Build, log_probs: Tensor, labels: Tensor, mean: bool) -> Tensor:
    if build.kernels.dtensor:
        return dtensor_loss.nll_loss(log_probs, labels, mean)
    return nll_loss(log_probs, labels)


def chunked_loss(build: Build, hidden: Tensor, labels: Tensor) -> Tensor:
    """Head and loss of one chunk of tokens at a time, each recomputed in backward."""
    build.tape.phase = "loss"
    n = build.kernels.loss_chunks
    tokens = build["b"] * build["s"]
    part = tokens.over(n)
    last = tokens - part * (n - 1)
    sizes = (part,) * (n - 1) + (last,)
    build.at("loss", "loss")
    rows = split(reshape(hidden, (tokens, build["h"])), sizes, 0)
    total: Tensor | None = None

    def part_loss(piece: Tensor, piece_labels: Tensor) -> Tensor:
        with build.autocast():
            return cross_entropy(build, head(build, piece), piece_labels, True, mean=False)

    for piece, size in zip(rows, sizes, strict=True):
        one = checkpoint(part_loss, piece, labels.view_as((size,), None, labels.strides[1:]))
        build.at("loss", "loss")
        total = one if total is None else add(total, one)
    assert total is not None
    return whole_loss(build, scale(total, "div.Tensor"))


def fused_loss(build: Build, hidden: Tensor) -> Tensor:
    """Head and loss as one kernel over chunks of tokens (closed form)."""
    build.tape.phase = "loss"
    build.at("lm_head", "head")
    tied = build.config.tie_word_embeddings
    leaf = build.tape.leaves["embedding.weight"] if tied else None
    if leaf is None:
        leaf = build.param("lm_head.weight", (build["V"], build["w"]))
    weight = build.cast_param(leaf)
    x = to(hidden, build.kernels.compute_dtype)
    return fused_head_loss(x, weight, build.kernels.loss_chunks)
