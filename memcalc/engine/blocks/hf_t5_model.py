"""T5ForConditionalGeneration: encoder, decoder on labels shifted right, head, cross-entropy.

Shapes: source ids (b, s), labels (b, u), the encoder's output (b, s, h). Names alive in a `forward` of
the modeling file are alive here. No attention mask is given, as of batches without padding.
Source: transformers 5.23, models/t5/modeling_t5.py (models/mt5 is a copy).
Checked by: oracle/test_hf_encoders.py, event for event.
"""

from __future__ import annotations

from memcalc.engine.aten.fused import embedding
from memcalc.engine.aten.pointwise import scale
from memcalc.engine.aten.shape import reshape
from memcalc.engine.blocks.embedding import Context, with_gradient
from memcalc.engine.blocks.hf_loss import logits_of
from memcalc.engine.blocks.hf_masks import additive_mask
from memcalc.engine.blocks.hf_model import RunBlock
from memcalc.engine.blocks.hf_t5 import t5_norm
from memcalc.engine.blocks.loss import cross_entropy
from memcalc.engine.blocks.residual import drop
from memcalc.engine.build import Build
from memcalc.engine.kernels import BlockKind
from memcalc.engine.sizes import ONE
from memcalc.engine.tensors import Tensor


def t5_loss(build: Build, ids: Tensor, layers: list[BlockKind], run: RunBlock) -> Tensor:
    """The loss of source ids and as many labels as the decoder has positions."""
    labels = build.tape.external((build["b"], build["u"]), "int64")
    encoders = sum(kind.stack == "encoder" for kind in layers)
    memory = _stack(build, ids, list(enumerate(layers))[:encoders], run)
    shifted = _shifted_right(build)
    decoded = _stack(build, shifted, list(enumerate(layers))[encoders:], run, memory)
    hidden = decoded
    if build.config.head_scale:
        build.at("head_scale", "head")
        hidden = scale(hidden)
    logits = logits_of(build, hidden)
    build.tape.phase = "loss"
    rows = reshape(logits, (build["b"] * build["u"], build["V"]))
    loss = cross_entropy(build, rows, labels, upcast=False)
    del memory, shifted, decoded, hidden, logits, rows
    return loss


def _shifted_right(build: Build) -> Tensor:
    """Decoder ids (b, u): zeros that labels are copied into, places with -100 filled."""
    build.at("shift_right", "embedding")
    tape, b, u = build.tape, build["b"], build["u"]
    shifted = tape.empty("new_zeros", (b, u), "int64")
    copied = tape.empty("clone", (b, u - 1), "int64")
    del copied
    start = tape.empty("scalar_tensor", (ONE,), "int64")
    del start
    ignored = tape.empty("eq.Scalar", (b, u), "bool")
    del ignored
    return shifted


def _stack(
    build: Build,
    ids: Tensor,
    layers: list[tuple[int, BlockKind]],
    run: RunBlock,
    memory: Tensor | None = None,
) -> Tensor:
    """T5Stack.forward: embedding, mask, blocks that pass on the first one's biases, norm, dropout."""
    part = "" if memory is None else "decoder_"
    build.at(f"{part}embedding", "embedding")
    embeds = with_gradient(build, embedding(_table(build), ids))
    context = _context(build, memory, ids)
    build.at(f"{part}embedding_dropout", "embedding")
    x = drop(build, embeds, f"{part}embedding_dropout", build.config.embedding_dropout)
    build.biases = ()
    for index, kind in layers:
        build.tape.mark("block", index)
        x = run(build, index, kind, x, (*context, *build.biases))
    build.tape.mark("blocks end", -1)
    x = t5_norm(build, x, f"{part or 'encoder_'}final_norm")
    x = drop(build, x, f"{part or 'encoder_'}final_dropout")
    build.biases = ()
    return x


def _table(build: Build) -> Tensor:
    """The embedding (V, h) that encoder and decoder share."""
    known = build.tape.leaves.get("embedding.weight")
    return known or build.param("embedding.weight", (build["V"], build["w"]))


def _context(build: Build, memory: Tensor | None, ids: Tensor) -> Context:
    """What every block of the stack reads beside x: of the decoder, memory and eager code's mask."""
    if memory is None:
        return ()
    if build.kernels.attention != "eager":
        return (memory,)
    build.at("causal_mask", "embedding")
    return memory, additive_mask(build, "full", (ids.shape[1], ids.shape[1]))
