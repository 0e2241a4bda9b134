"""Trace one micro-batch, forward, loss and backward, of a decoder with given numbers of blocks."""

from __future__ import annotations

from memcalc.engine.autograd import backward
from memcalc.engine.blocks.compiled import compiled_block
from memcalc.engine.blocks.embedding import Context, contexts, embed
from memcalc.engine.blocks.hf_loss import causal_lm_loss, logits_of
from memcalc.engine.blocks.hf_model import hidden_states
from memcalc.engine.blocks.loss import chunked_loss, fused_loss, head, plain_loss, project_out
from memcalc.engine.blocks.norm import norm
from memcalc.engine.build import Build
from memcalc.engine.checkpoint import KEEP_ATTENTION, KEEP_MATMULS, checkpoint, checkpoint_reentrant
from memcalc.engine.injectors import attach, enter_block, enter_phase, leave_block
from memcalc.engine.kernels import BlockKind
from memcalc.engine.layer import block
from memcalc.engine.tensors import Tape, Tensor

_KEEP = {"full": frozenset[str](), "sac": KEEP_MATMULS, "sac-attention": KEEP_ATTENTION}


def run_block(build: Build, index: int, kind: BlockKind, x: Tensor, context: Context) -> Tensor:
    """Block `index` under its kind of recomputation."""
    recompute = kind.recompute

    def call(hidden: Tensor, *rest: Tensor) -> Tensor:
        with build.autocast():
            build.tape.block = index
            build.kind = kind
            if build.kernels.compiled:
                return compiled_block(block, build, hidden, rest)
            return block(build, hidden, rest)

    enter_block(build.hooks, index, "forward")
    build.tape.block = index
    if recompute in _KEEP:
        out = checkpoint(call, x, *context, keep=_KEEP[recompute])
    elif recompute == "reentrant":
        out = checkpoint_reentrant(call, x, *context)
    else:
        out = call(x, *context)
    build.tape.block = -1
    leave_block(build.hooks, index, "forward")
    return out


def micro_batch(build: Build, layers: list[BlockKind], has_gradients: bool) -> Tape:
    """Trace forward, loss and backward of a micro-batch; layers: each block's kind."""
    tape = build.tape
    build.hooks = [injector.start(build) for injector in build.injectors]
    attach(build.hooks, build)
    enter_phase(build.hooks, "forward")
    ids = tape.external((build["b"], build["s"]), "int64")
    with build.autocast():
        scalar = _forward(build, ids, layers)
    tape.mark("backward", -1)
    enter_phase(build.hooks, "backward")
    tape.at("loss", -1, "backward")
    seed = tape.empty("ones_like", scalar.shape, scalar.dtype)
    if has_gradients:
        for leaf in tape.leaves.values():
            leaf.grad = tape.external(leaf.shape, leaf.dtype)
    backward(scalar, seed)
    del scalar, seed
    enter_phase(build.hooks, "end")
    tape.mark("end", -1)
    return tape


def _forward(build: Build, ids: Tensor, layers: list[BlockKind]) -> Tensor:
    if build.kernels.hf:
        hidden = hidden_states(build, ids, layers, run_block)
        return causal_lm_loss(build, logits_of(build, hidden), ids)
    tape = build.tape
    x = embed(build, ids)
    context = contexts(build, {kind.attention for kind in layers})
    for index, kind in enumerate(layers):
        tape.mark("block", index)
        x = run_block(build, index, kind, x, context[kind.attention])
    tape.mark("blocks end", -1)
    if build.kernels.loss == "chunked":
        return chunked_loss(build, _final_norm(build, x), ids)
    if build.kernels.loss == "fused":
        return fused_loss(build, _final_norm(build, x))
    logits = head(build, _final_norm(build, x))
    return plain_loss(build, logits, ids)


def _final_norm(build: Build, x: Tensor) -> Tensor:
    x = norm(build, x, "final_norm") if build.config.final_norm else x
    return project_out(build, x)
