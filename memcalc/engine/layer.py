"""One decoder block, assembled from norm, attention, MLP and residual adds."""

from __future__ import annotations

from memcalc.engine.aten.pointwise import add, dropout
from memcalc.engine.blocks.attention import attention
from memcalc.engine.blocks.embedding import Context
from memcalc.engine.blocks.hf_block import hf_block
from memcalc.engine.blocks.mla import mla
from memcalc.engine.blocks.mlp import mlp
from memcalc.engine.blocks.moe import moe
from memcalc.engine.blocks.norm import norm
from memcalc.engine.build import Build
from memcalc.engine.tensors import Tensor


def block(build: Build, x: Tensor, context: Context) -> Tensor:
    """x + attention(norm(x)), then x + mlp(norm(x)): the pre-norm block of GPT-2 and LLaMA."""
    if build.kernels.hf:
        return hf_block(build, x, context)
    x = residual(build, x, drop(build, attend(build, x, context), "attn_dropout"), "attn_residual")
    return residual(build, x, drop(build, feed(build, x), "mlp_dropout"), "mlp_residual")


def attend(build: Build, x: Tensor, context: Context) -> Tensor:
    """attention(norm(x)); the normed input lives until attention returns."""
    normed = norm(build, x, "attn_norm")
    if build.config.mla:
        return mla(build, normed, context)[0]
    return attention(build, normed, context)


def feed(build: Build, x: Tensor) -> Tensor:
    """mlp(norm(x)); the normed input lives until the MLP returns."""
    normed = norm(build, x, "mlp_norm")
    return moe(build, normed)[0] if build.kind.sparse else mlp(build, normed)


def drop(build: Build, x: Tensor, op: str) -> Tensor:
    """Dropout on a branch, where the model has it."""
    p = build.config.residual_dropout
    if not p or not build.kernels.use_dropout:
        return x
    build.at(op, "residual")
    return dropout(x, p)


def residual(build: Build, x: Tensor, branch: Tensor, op: str) -> Tensor:
    """x + branch: keeps nothing."""
    build.at(op, "residual")
    return add(x, branch)
