"""Around Megatron's layers: embedding, final norm, head and loss.

ids (b, s) are looked up in a rank's rows of the vocabulary, others' are zeroed and the ranks' results
summed. The stream is turned to (s, b, h); under sequence parallelism a rank keeps its part. The input
of the first layer lives until the loss is there.
Source: Megatron-Core 0.14, models/gpt/gpt_model.py, models/common/embeddings/
language_model_embedding.py, tensor_parallel/layers.py.
Checked by: unit/test_megatron_model.py.
"""

from __future__ import annotations

from memcalc.engine.aten.collective import reduce_scatter, summed
from memcalc.engine.aten.fused import embedding
from memcalc.engine.aten.megatron_ops import cross_entropy, head, mean_loss, zero_rows
from memcalc.engine.aten.pointwise import add, constant, dropout
from memcalc.engine.aten.shape import contiguous, permute
from memcalc.engine.aten.te_linear import norm
from memcalc.engine.blocks.hf_model import RunBlock
from memcalc.engine.blocks.megatron_parts import (
    column,
    norm_parameters,
    note_vocabulary_sums,
    options,
    own_rows,
)
from memcalc.engine.build import Build
from memcalc.engine.kernels import BlockKind
from memcalc.engine.tensors import Tensor


def megatron_model(build: Build, given: Tensor, layers: list[BlockKind], run: RunBlock) -> Tensor:
    """The loss of token ids (b, s) or of the stream given; or the stream after the last layer.

    What a stage without the embedding is given, and the first layer's input, live to the end.
    """
    first = embed(build, given) if build.ends[0] else given
    x = first
    for index, kind in enumerate(layers):
        build.tape.mark("block", index)
        x = run(build, index, kind, x, ())
    build.tape.mark("blocks end", -1)
    if not build.ends[1]:
        return x
    x = final_norm(build, x)
    loss = logits_and_loss(build, x)
    del first
    return loss


def embed(build: Build, ids: Tensor) -> Tensor:
    """The stream's first value (s_t, b, h)."""
    x = _looked_up(build, ids)
    if build.config.embedding_norm:  # BigScience's fork: VocabParallelEmbedding.norm
        build.at("embedding_norm", "embedding")
        x = norm(x, norm_parameters(build, "embedding_norm", build["h"]))
    if build.config.position_embedding == "learned":
        build.at("position_embedding", "embedding")
        rows = build.param("position_embedding.weight", (build["P"], build["h"]))
        x = add(x, embedding(rows, constant(build.tape, "position_ids", ids.shape, "int64")))
    x = contiguous(permute(x, (1, 0, 2)))
    if options(build).sequence:
        build.at("embedding", "embedding")
        x = reduce_scatter(x, (*own_rows(build), build["h"]))
    if build.config.embedding_dropout and build.kernels.use_dropout:
        build.at("embedding_dropout", "embedding")
        x = dropout(x, build.config.embedding_dropout)
    return x


def _looked_up(build: Build, ids: Tensor) -> Tensor:
    """Rows of this rank's part of the vocabulary; ids of other parts give zeros."""
    build.at("embedding", "embedding")
    weight = build.param("embedding.weight", (build["V"], build["h"]))
    if not options(build).split:
        return embedding(weight, ids)
    mask = constant(build.tape, "bitwise_or", ids.shape, "bool")
    own = constant(build.tape, "masked_input", ids.shape, "int64")
    out = zero_rows(embedding(weight, own), mask)
    if not options(build).sequence:
        summed(out)
    return out


def final_norm(build: Build, x: Tensor) -> Tensor:
    """The norm before the head."""
    build.at("final_norm", "norm")
    return norm(x, norm_parameters(build, "final_norm", build["h"]))


def logits_and_loss(build: Build, x: Tensor) -> Tensor:
    """Logits (s, b, V) of the normed stream, and the mean loss."""
    build.at("lm_head", "head")
    if build.config.tie_word_embeddings and build.ends[0]:
        weight = build.tape.leaves["embedding.weight"]
    else:
        weight = build.param("lm_head.weight", (build["V"], build["h"]))
    logits = head(x, weight, column(build))
    build.tape.phase = "loss"
    build.at("loss", "loss")
    fused = build.kernels.loss == "fused"
    note_vocabulary_sums(build, logits, fused)
    return mean_loss(cross_entropy(logits, fused))
