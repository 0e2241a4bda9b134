"""BERT as transformers writes it: three embeddings summed, norms after the sums, a head of two layers.

Shapes: ids (b, s), x (b, s, h). Every position sees all others, and no mask is given, as of batches
without padding. BertForMaskedLM: no pooler; the loss is over all positions, those not masked ignored.
Source: transformers 5.23, models/bert/modeling_bert.py.
Checked by: oracle/test_hf_encoders.py, event for event.
"""

from __future__ import annotations

from collections.abc import Callable

from memcalc.engine.aten.fused import embedding
from memcalc.engine.aten.matmul import matmul_heads
from memcalc.engine.aten.pointwise import add, dropout, scale, softmax_last, to
from memcalc.engine.aten.shape import contiguous, permute, reshape
from memcalc.engine.blocks.attention import HEADS_FIRST, fused_core
from memcalc.engine.blocks.embedding import Context
from memcalc.engine.blocks.hf_loss import logits_of
from memcalc.engine.blocks.loss import cross_entropy
from memcalc.engine.blocks.mlp import activated, down, up
from memcalc.engine.blocks.norm import norm
from memcalc.engine.blocks.residual import drop
from memcalc.engine.build import Build
from memcalc.engine.sizes import ONE
from memcalc.engine.tensors import Tensor


def bert_embeddings(
    build: Build, ids: Tensor, look_up: Callable[[Build, Tensor], Tensor]
) -> Tensor:
    """BertEmbeddings.forward: (b, s, h). Segments are gathered from a buffer of zeros."""
    build.at("token_type_embedding", "embedding")
    tape, b, s = build.tape, build["b"], build["s"]
    gathered = tape.empty("gather", (ONE, s), "int64")
    segments = gathered.view_as((b, s), None, None)
    words = look_up(build, ids)
    build.at("token_type_embedding", "embedding")
    rows = build.param("token_type_embedding.weight", (build["Y"], build["h"]))
    types = embedding(rows, segments)
    x = add(words, types)
    build.at("position_embedding", "embedding")
    positions = tape.external((ONE, s), "int64")  # a slice of a buffer
    table = build.param("position_embedding.weight", (build["P"], build["h"]))
    placed = embedding(table, positions)
    x = add(x, placed)
    x = norm(build, x, "embedding_norm")
    x = drop(build, x, "embedding_dropout", build.config.embedding_dropout)
    del gathered, segments, words, types, placed
    return x


def bert_block(build: Build, x: Tensor, context: Context) -> Tensor:
    """BertLayer.forward: norm(x + attention(x)), then norm(x + mlp(x))."""
    attended, _weights = _attention(build, x)
    fed = activated(build, up(build, attended))
    return _closed(build, down(build, fed), attended, "mlp")


def _attention(build: Build, x: Tensor) -> tuple[Tensor, Tensor | None]:
    attended, weights = _self_attention(build, x)
    build.at("o_proj", "attention")
    width = build["a"] * build["d"]
    attended = _closed(
        build, build.linear(attended, "o_proj", (width, build["h"]), True), x, "attn"
    )
    return attended, weights


def _closed(build: Build, branch: Tensor, x: Tensor, part: str) -> Tensor:
    """norm(dropout(branch) + x)."""
    branch = drop(build, branch, f"{part}_dropout")
    build.at(f"{part}_residual", "residual")
    return norm(build, add(branch, x), f"{part}_norm")


def _self_attention(build: Build, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Projections and kernel; q, k and v end with this module."""
    query, key, value = (_heads(build, x, f"{letter}_proj") for letter in "qkv")
    build.at("attention", "attention")
    if build.kernels.attention == "eager":
        out, weights = _eager(build, query, key, value)
    else:
        out, weights = contiguous(permute(fused_core(build, query, key, value), HEADS_FIRST)), None
    out = contiguous(reshape(out, (build["b"], build["s"], build["a"] * build["d"])))
    return out, weights


def _heads(build: Build, x: Tensor, name: str) -> Tensor:
    build.at(name, "attention")
    out = build.linear(x, name, (build["h"], build["a"] * build["d"]), True)
    return permute(reshape(out, (build["b"], build["s"], build["a"], build["d"])), HEADS_FIRST)


def _eager(build: Build, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    weights = scale(matmul_heads(query, permute(key, (0, 1, 3, 2))))
    weights = softmax_last(to(weights, "fp32") if build.kernels.autocast else weights)
    if build.kernels.use_dropout:
        weights = dropout(weights, build.config.attention_dropout)
    out = matmul_heads(build.narrow(weights), value)
    return contiguous(permute(out, HEADS_FIRST)), weights


def masked_lm_loss(build: Build, hidden: Tensor) -> Tensor:
    """BertOnlyMLMHead and the mean cross-entropy of (b, s) labels."""
    labels = build.tape.external((build["b"], build["s"]), "int64")
    logits = logits_of(build, _transformed(build, hidden))
    build.tape.phase = "loss"
    rows = reshape(logits, (build["b"] * build["s"], build["V"]))
    loss = cross_entropy(build, rows, labels, upcast=False)
    del logits, rows
    return loss


def _transformed(build: Build, x: Tensor) -> Tensor:
    """BertPredictionHeadTransform: dense, activation, norm."""
    build.at("head_dense", "head")
    x = build.linear(x, "head_dense", (build["h"], build["h"]), True)
    x = activated(build, x)
    return norm(build, x, "head_norm")
