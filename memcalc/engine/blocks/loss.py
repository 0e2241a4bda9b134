"""Final norm, head and cross-entropy, plain or in chunks of tokens."""

from __future__ import annotations

from memcalc.engine.aten.closed import fused_head_loss
from memcalc.engine.aten.fused import log_softmax, nll_loss
from memcalc.engine.aten.matmul import linear
from memcalc.engine.aten.pointwise import add, scale, tanh, to
from memcalc.engine.aten.shape import reshape, split
from memcalc.engine.build import Build
from memcalc.engine.checkpoint import checkpoint
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
    weight = build.cast_param(build.tape.leaves["embedding.weight"])
    x = to(hidden, build.kernels.compute_dtype) if build.kernels.autocast else hidden
    if not build.config.lm_head_bias:
        return linear(x, weight)
    return linear(x, weight, build.cast_param(build.param("lm_head.bias", (build["V"],))))


def project_out(build: Build, hidden: Tensor) -> Tensor:
    """Hidden states as wide as the embedding, where that is narrower than the blocks (OPT-350m)."""
    if build["w"] is build["h"]:
        return hidden
    build.at("project_out", "head")
    return build.linear(hidden, "project_out", (build["h"], build["w"]), False)


def plain_loss(build: Build, logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of whole logits (b, s, V)."""
    build.tape.phase = "loss"
    tokens = build["b"] * build["s"]
    return cross_entropy(
        build,
        reshape(logits, (tokens, build["V"])),
        labels.view_as((tokens,), None, None),
        build.kernels.loss == "fp32",
    )


def cross_entropy(build: Build, logits: Tensor, labels: Tensor, upcast: bool) -> Tensor:
    """Cross-entropy of (tokens, V) logits.

    Under CUDA autocast without an upcast, log_softmax is asked for its input's dtype, so the
    log-probabilities stay in 16 bit and the likelihood works on an fp32 cast of them.
    """
    build.at("loss", "loss")
    if upcast:
        wide = to(logits, "fp32")  # lives until the loss call returns
        return nll_loss(log_softmax(wide), labels)
    if build.kernels.autocast:
        log_probs = log_softmax(logits)
        return nll_loss(to(log_probs, "fp32"), labels)
    return nll_loss(log_softmax(logits), labels)


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
            return cross_entropy(build, head(build, piece), piece_labels, True)

    for piece, size in zip(rows, sizes, strict=True):
        one = checkpoint(part_loss, piece, labels.view_as((size,), None, labels.strides[1:]))
        build.at("loss", "loss")
        total = one if total is None else add(total, one)
    assert total is not None
    return scale(total, "div.Tensor")


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
