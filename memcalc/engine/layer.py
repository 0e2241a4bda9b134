"""One decoder block, assembled from norm, attention, MLP and residual adds."""

from __future__ import annotations

from memcalc.engine.blocks.attention import attention
from memcalc.engine.blocks.embedding import Context
from memcalc.engine.blocks.hf_block import hf_block
from memcalc.engine.blocks.litgpt import litgpt_block
from memcalc.engine.blocks.megatron_layer import megatron_block
from memcalc.engine.blocks.mla import mla
from memcalc.engine.blocks.mlp import mlp
from memcalc.engine.blocks.moe import moe
from memcalc.engine.blocks.nanotron_layer import nanotron_block
from memcalc.engine.blocks.norm import norm
from memcalc.engine.blocks.residual import drop, residual
from memcalc.engine.blocks.torchtitan import torchtitan_attention
from memcalc.engine.blocks.torchtune import torchtune_block
from memcalc.engine.build import Build
from memcalc.engine.tensors import Tensor


def block(build: Build, x: Tensor, context: Context) -> Tensor:
    """x + attention(norm(x)), then x + mlp(norm(x)); norms may stand elsewhere, branches side by side.

    norm_placement: pre as above (GPT-2, LLaMA); post x + norm(f(x)); sandwich x + norm(f(norm(x)));
    post-residual norm(x + f(x)).
    """
    if build.kernels.megatron is not None:
        nanotron = build.kernels.megatron.code == "nanotron"
        return nanotron_block(build, x) if nanotron else megatron_block(build, x)
    if build.kernels.hf:
        return hf_block(build, x, context)
    if build.kernels.traits.code == "torchtune":
        return torchtune_block(build, x)
    if build.kernels.traits.code == "litgpt":
        return litgpt_block(build, x, context)
    if build.config.parallel_block:
        return parallel(build, x, context)
    after_sum = build.config.norm_placement == "post-residual"
    x = residual(build, x, drop(build, attend(build, x, context), "attn_dropout"), "attn_residual")
    if after_sum:
        x = norm(build, x, "attn_norm")
    x = residual(build, x, drop(build, feed(build, x), "mlp_dropout"), "mlp_residual")
    return norm(build, x, "mlp_norm") if after_sum else x


def parallel(build: Build, x: Tensor, context: Context) -> Tensor:
    """x + attention(norm(x)) + mlp(norm'(x)): one norm for both (GPT-J) or two (GPT-NeoX)."""
    normed = norm(build, x, "attn_norm")
    attended = drop(build, _attention(build, normed, context), "attn_dropout")
    if build.config.parallel_norms == 2:
        normed = norm(build, x, "mlp_norm")
    fed = drop(build, _mlp(build, normed), "mlp_dropout")
    return residual(build, residual(build, x, attended, "attn_residual"), fed, "mlp_residual")


def attend(build: Build, x: Tensor, context: Context) -> Tensor:
    """attention(norm(x)); the normed input lives until attention returns."""
    before, after = _norms(build)
    normed = norm(build, x, "attn_norm") if before else x
    out = _attention(build, normed, context)
    return norm(build, out, "post_attn_norm") if after else out


def _norms(build: Build) -> tuple[bool, bool]:
    """Whether a branch has a norm before it and one after it."""
    placement = build.config.norm_placement
    return placement in ("pre", "sandwich"), placement in ("post", "sandwich")


def _attention(build: Build, x: Tensor, context: Context) -> Tensor:
    if build.kernels.traits.code == "torchtitan":
        return torchtitan_attention(build, x, context)
    return mla(build, x, context)[0] if build.config.mla else attention(build, x, context)


def feed(build: Build, x: Tensor) -> Tensor:
    """mlp(norm(x)); the normed input lives until the MLP returns."""
    before, after = _norms(build)
    normed = norm(build, x, "mlp_norm") if before else x
    out = _mlp(build, normed)
    return norm(build, out, "post_mlp_norm") if after else out


def _mlp(build: Build, x: Tensor) -> Tensor:
    return moe(build, x)[0] if build.kind.sparse else mlp(build, x)
