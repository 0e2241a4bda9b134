"""Around nanotron's layers: embedding, final norm, head, loss.

ids (b, s) are transposed and looked up in a rank's rows of the vocabulary; others' rows are multiplied
by 0. Logits are cast to fp32 by a block of their own; the 16-bit ones go when the model returns, the
fp32 ones when the loss does. The loss makes one more fp32 tensor, the softmax, and keeps it.
Source: huggingface/nanotron 0.5, models/llama.py (LlamaModel, Loss, LlamaForTraining),
parallel/tensor_parallel/nn.py (TensorParallelEmbedding), functional.py (sharded_cross_entropy).
Checked by: unit/test_nanotron_saved.py.
"""

from __future__ import annotations

from memcalc.engine.aten import matmul
from memcalc.engine.aten.collective import reduce_scatter, summed
from memcalc.engine.aten.fused import embedding
from memcalc.engine.aten.megatron_ops import mean_loss
from memcalc.engine.aten.nanotron_ops import Divided, linear, passed_on, sharded_cross_entropy
from memcalc.engine.aten.pointwise import constant, mul, to
from memcalc.engine.aten.te_linear import norm
from memcalc.engine.blocks.hf_model import RunBlock
from memcalc.engine.blocks.megatron_parts import (
    all_rows,
    norm_parameters,
    note_vocabulary_sums,
    options,
    own_rows,
)
from memcalc.engine.build import Build
from memcalc.engine.kernels import BlockKind
from memcalc.engine.ledger import note_for_backward
from memcalc.engine.sizes import ONE
from memcalc.engine.tensors import Tensor, bytes_of


def nanotron_model(build: Build, given: Tensor, layers: list[BlockKind], run: RunBlock) -> Tensor:
    """The loss of token ids (b, s) or of the stream given; or the stream after the last layer."""
    first = embed(build, given) if build.ends[0] else given
    x = first
    for index, kind in enumerate(layers):
        build.tape.mark("block", index)
        x = run(build, index, kind, x, ())
    build.tape.mark("blocks end", -1)
    if not build.ends[1]:
        return x if layers or build.ends[0] else passed_on(x)
    logits = logits_of(build, x)
    del first, x
    return loss_of(build, logits)


def embed(build: Build, ids: Tensor) -> Tensor:
    """The stream's first value (s_t, b, h)."""
    build.at("embedding", "embedding")
    weight = build.param("embedding.weight", (build["V"], build["h"]))
    ids = ids.view_as(all_rows(build), (1, 0), None)
    if not options(build).split:
        return embedding(weight, ids)
    tape = build.tape
    others = constant(tape, "logical_or", ids.shape, "bool")
    masked = constant(tape, "masked_input", ids.shape, "int64")
    out = embedding(weight, masked)
    kept = constant(tape, "bitwise_not", (*ids.shape, ONE), "bool")
    out = mul(out, kept)
    del others, masked
    if options(build).sequence:
        return reduce_scatter(out, (*own_rows(build), build["h"]))
    summed(out)
    return out


def logits_of(build: Build, x: Tensor) -> Tensor:
    """fp32 logits (s, b, V) of the stream after the last layer."""
    build.at("final_norm", "norm")
    hidden = norm(x, norm_parameters(build, "final_norm", build["h"]))
    build.at("lm_head", "head")
    if build.config.tie_word_embeddings and build.ends[0]:
        weight = build.tape.leaves["embedding.weight"]
    else:
        weight = build.param("lm_head.weight", (build["V"], build["h"]))
    chosen = options(build)
    if chosen.split and not chosen.sequence:
        size = bytes_of(hidden.shape, hidden.dtype)
        note_for_backward(build.tape, "all_reduce", size, "tp")
        narrow = matmul.linear(hidden, weight)
    else:
        narrow = linear(hidden, weight, Divided(gathers=chosen.sequence, rows=all_rows(build)))
    wide = to(narrow, "fp32")
    del narrow
    return wide


def loss_of(build: Build, logits: Tensor) -> Tensor:
    """The masked mean of the losses."""
    build.tape.phase = "loss"
    build.at("loss", "loss")
    note_vocabulary_sums(build, logits)
    return mean_loss(sharded_cross_entropy(logits))
