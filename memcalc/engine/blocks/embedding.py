"""Token and position embeddings, rotary tables, masks: what is made before the first block."""

from __future__ import annotations

from memcalc.engine.aten.fused import embedding
from memcalc.engine.aten.pointwise import add, constant, dropout, scale
from memcalc.engine.blocks.cache import keys_read
from memcalc.engine.blocks.norm import norm
from memcalc.engine.blocks.relative import distance_table
from memcalc.engine.build import Build
from memcalc.engine.parallel.tensor import dtensor_loss
from memcalc.engine.parallel.tensor.placed import PART, WHOLE, Placed
from memcalc.engine.parallel.tensor.tensor_layers import position_rows, summed_stream
from memcalc.engine.sizes import ONE
from memcalc.engine.tensors import Tensor

#: What every block reads besides x: rotary cos and sin, causal mask (each only where used).
Context = tuple[Tensor, ...]


def embed(build: Build, ids: Tensor) -> Tensor:
    """Token embedding (b, s, h), plus learned positions where the model has them."""
    build.at("embedding", "embedding")
    x = _rows(build, ids)
    if build.config.embedding_scale:
        x = scale(x)
    x = with_gradient(build, x)
    if build["w"] is not build["h"]:
        build.at("project_in", "embedding")
        x = build.linear(x, "project_in", (build["w"], build["h"]), False)
    if build.config.position_embedding == "learned":
        build.at("position_embedding", "embedding")
        shape = (build["P"], build["h"])
        table = build.param("position_embedding.weight", shape, placed=WHOLE)
        positions = constant(build.tape, "arange", (build["s"],), "int64")
        x = add(x, position_rows(build, embedding(table, positions)))
        del positions
    if build.config.embedding_norm:
        x = norm(build, x, "embedding_norm")
    if build.config.embedding_dropout and build.kernels.use_dropout:
        build.at("embedding_dropout", "embedding")
        x = dropout(x, build.config.embedding_dropout)
    return x


def with_gradient(build: Build, x: Tensor) -> Tensor:
    """enable_input_require_grads: the output of a frozen embedding as a leaf that gets a gradient."""
    if build.kernels.adapter is not None and build.kernels.adapter.input_gradients:
        x.requires_grad = True
    return x


def _rows(build: Build, ids: Tensor) -> Tensor:
    """Rows of the token table (b, s, w); of a table that ranks share, this rank's part of the stream."""
    shape = (build["V"], build["w"])
    if build.kernels.dtensor is None:
        return embedding(build.param("embedding.weight", shape), ids)
    placed = PART  # tied, its gradient ends as this rank's rows, for the head's is added to it
    if not build.config.tie_word_embeddings:
        placed = Placed(whole=False, gradient=(shape[0] * build["tp"], shape[1]))
    weight = build.param("embedding.weight", shape, placed=placed)
    return summed_stream(build, dtensor_loss.embedding(weight, ids, build["tp"]))


def tables(build: Build) -> Context:
    """cos and sin of the rotary embedding, (s, d) each, or the sinusoids of relative positions."""
    if build.config.position_embedding == "relative":
        return (distance_table(build),)
    if build.config.position_embedding != "rope" or build.kernels.traits.code == "torchtune":
        return ()
    build.at("rope_tables", "embedding")
    tape, s, d = build.tape, build["s"], build["r"]
    if build.kernels.traits.code == "torchtitan":  # made once for the run
        return (tape.external((s, build["r/2"]), "complex64"),)
    if build.kernels.traits.code == "litgpt":  # buffers of the model
        as_made = build.kernels.traits.tables == "fp32"
        dtype = "fp32" if as_made else build.kernels.compute_dtype
        return tape.external((s, d), dtype), tape.external((s, d), dtype)
    dtype = build.kernels.compute_dtype
    angles = constant(tape, "cat", (s, d), "fp32")
    wide = constant(tape, "cos", (s, d), "fp32")
    cos = constant(tape, "_to_copy", (s, d), dtype) if dtype != "fp32" else wide
    del wide
    wide = constant(tape, "sin", (s, d), "fp32")
    sin = constant(tape, "_to_copy", (s, d), dtype) if dtype != "fp32" else wide
    del wide, angles
    return cos, sin


def contexts(build: Build, kinds: set[str]) -> dict[str, Context]:
    """What blocks of each kind read: the same tables, a mask of their own."""
    shared = tables(build)
    return {kind: (*shared, *causal_mask(build, kind)) for kind in sorted(kinds)}


def causal_mask(build: Build, kind: str = "full") -> Context:
    """The additive mask (1, 1, s, keys) of eager attention; with ALiBi (1, a, s, keys), a bias in it.

    ALiBi's slope times the key's position stands for slope times distance, as softmax allows.
    """
    alibi = build.config.position_embedding == "alibi"
    if build.kernels.attention != "eager" and not alibi:
        return ()
    build.at("causal_mask", "embedding")
    tape, s, dtype = build.tape, build["s"], build.kernels.compute_dtype
    keys = keys_read(build, kind)
    full = constant(tape, "full", (s, keys), dtype)
    mask = constant(tape, "triu", (s, keys), dtype)
    del full
    if not alibi:
        return (mask.view_as((ONE, ONE, s, keys), None, None),)
    build.at("alibi", "embedding")
    slopes = constant(tape, "pow.Scalar", (build["a"],), dtype)
    bias = constant(tape, "mul.Tensor", (build["a"], ONE, keys), dtype)
    biased = constant(tape, "add.Tensor", (build["a"], s, keys), dtype)
    del slopes, bias, mask
    return (biased.view_as((ONE, build["a"], s, keys), None, None),)
