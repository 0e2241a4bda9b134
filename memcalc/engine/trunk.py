"""The blocks of a decoder one after the other, each under its kind of recomputation, and the final norm.

Checked by: oracle/test_torch_events.py, oracle/test_hf_families.py.
"""

from __future__ import annotations

from memcalc.engine.blocks.compiled import compiled_block
from memcalc.engine.blocks.embedding import Context, contexts, embed
from memcalc.engine.blocks.hf_model import RunBlock, hidden_states
from memcalc.engine.blocks.loss import project_out
from memcalc.engine.blocks.norm import norm
from memcalc.engine.build import Build
from memcalc.engine.checkpoint import (
    KEEP_ATTENTION,
    KEEP_EVERY_SECOND,
    KEEP_MATMULS,
    checkpoint,
    checkpoint_reentrant,
)
from memcalc.engine.injectors import enter_block, leave_block
from memcalc.engine.kernels import BlockKind
from memcalc.engine.layer import block
from memcalc.engine.tensors import Tensor

_KEEP = {
    "full": frozenset[str](),
    "sac": KEEP_MATMULS,
    "sac-attention": KEEP_ATTENTION,
    "sac-every-second": KEEP_EVERY_SECOND,
}


def run_block(build: Build, index: int, kind: BlockKind, x: Tensor, context: Context) -> Tensor:
    """Block `index` under its kind of recomputation."""
    recompute = kind.recompute
    inside = None
    if build.kernels.compiled and build.kernels.traits.code == "torchtitan":
        recompute, inside = "none", _KEEP.get(recompute)  # compiled with its checkpoint

    def call(hidden: Tensor, *rest: Tensor) -> Tensor:
        with build.autocast():
            build.tape.block = index
            build.kind = kind
            if build.kernels.compiled:
                return compiled_block(block, build, hidden, rest, inside)
            return block(build, hidden, rest)

    enter_block(build.hooks, index, "forward")
    build.tape.block = index
    if any(tensor.requires_grad for tensor in (x, *context)):
        build.fed.add(index)
    if recompute in _KEEP:
        out = checkpoint(call, x, *context, keep=_KEEP[recompute])
    elif recompute == "reentrant" and build.kernels.hf:  # all but x in a functools.partial
        out = checkpoint_reentrant(lambda hidden: call(hidden, *context), x)
    elif recompute == "reentrant":
        out = checkpoint_reentrant(call, x, *context)
    else:
        out = call(x, *context)
    build.tape.block = -1
    leave_block(build.hooks, index, "forward")
    return out


def run_blocks(
    build: Build,
    stream: list[Tensor],
    layers: list[BlockKind],
    first: int = 0,
    run: RunBlock = run_block,
) -> tuple[Tensor, dict[str, Context]]:
    """The plain decoder's blocks over the stream, which is taken out of its list; and what they read."""
    context = contexts(build, {kind.attention for kind in layers})
    x = stream.pop()
    for index, kind in enumerate(layers, first):
        build.tape.mark("block", index)
        x = run(build, index, kind, x, context[kind.attention])
    build.tape.mark("blocks end", -1)
    return x, context


def normed_states(
    build: Build,
    ids: Tensor,
    layers: list[BlockKind],
    first: int = 0,
    held: list[Tensor] | None = None,
) -> Tensor:
    """Normed hidden states (b, s, h) of transformers' decoder or of the plain one.

    first: number of the first block, where another model's come before. held: takes the input of every
    block and the result, as a caller who asked for all hidden states gets them.
    """

    def run(build: Build, index: int, kind: BlockKind, x: Tensor, context: Context) -> Tensor:
        if held is not None:
            held.append(x)
        return run_block(build, index, kind, x, context)

    if build.kernels.hf:
        x = hidden_states(build, ids, layers, run, first)
    else:
        x = final_norm(build, run_blocks(build, [embed(build, ids)], layers, first, run)[0])
    if held is not None:
        held.append(x)
    return x


def final_norm(build: Build, x: Tensor) -> Tensor:
    """The stream after the last block, normed, as wide as the head reads it."""
    x = norm(build, x, "final_norm") if build.config.final_norm else x
    x = project_out(build, x)
    if build.config.tie_word_embeddings and not build.ends[0]:  # a copy of the first stage's
        build.at("lm_head", "head")
        build.param("embedding.weight", (build["V"], build["w"]))
    return x
