"""transformers' decoder layers: the order of norms, branches and sums, and what stays alive.

Source: transformers 5.23, models/*/modeling_*.py. Checked by: oracle/test_hf_families.py.
"""

from __future__ import annotations

from memcalc.engine.adapters.bottleneck import after_sum, beside
from memcalc.engine.aten.pointwise import add, add_in_place
from memcalc.engine.blocks.embedding import Context
from memcalc.engine.blocks.hf_attention import Attended, interface_attention
from memcalc.engine.blocks.hf_bert import bert_block
from memcalc.engine.blocks.hf_bloom import bloom_attention, bloom_mlp
from memcalc.engine.blocks.hf_falcon import dropout_add, falcon_attention, falcon_mlp
from memcalc.engine.blocks.hf_gptj import gptj_attention
from memcalc.engine.blocks.hf_t5 import t5_block
from memcalc.engine.blocks.mla import mla
from memcalc.engine.blocks.mlp import activated, down, mlp, up
from memcalc.engine.blocks.moe import moe
from memcalc.engine.blocks.norm import norm
from memcalc.engine.blocks.residual import drop
from memcalc.engine.build import Build
from memcalc.engine.tensors import Tensor


def hf_block(build: Build, x: Tensor, context: Context) -> Tensor:
    """One layer of the family's own code: (b, s, h) to (b, s, h)."""
    return _BLOCKS[build.kernels.traits.block](build, x, context)


def attend(build: Build, x: Tensor, context: Context) -> Attended:
    """The family's attention module."""
    if build.config.mla:
        return mla(build, x, context)
    return interface_attention(build, x, context)


def sequential(build: Build, x: Tensor, context: Context) -> Tensor:
    """Attention, sum, MLP, sum, with norms before, after, around or after the sums."""
    placement = build.config.norm_placement
    before, after = placement in ("pre", "sandwich"), placement in ("post", "sandwich")
    hidden = norm(build, x, "attn_norm") if before else x
    hidden, _weights = attend(build, hidden, context)
    if after:
        hidden = norm(build, hidden, "post_attn_norm")
    if not build.kernels.traits.keeps_undropped:
        hidden = drop(build, hidden, "attn_dropout")
    hidden = _sum(build, x, hidden, "attn")
    if placement == "post-residual":
        hidden = norm(build, hidden, "attn_norm")
    x = hidden
    if before:
        hidden = norm(build, hidden, "mlp_norm")
    if build.kernels.traits.inline_mlp:
        hidden = up(build, hidden)
        hidden = activated(build, hidden)
        hidden = down(build, hidden)
    elif build.kind.sparse:
        hidden, scores = moe(build, hidden)
        if build.config.attention_sinks:  # gpt-oss binds both to the same name
            _weights = scores
        del scores
    else:
        hidden = beside(build, hidden, mlp(build, hidden))
    if after:
        hidden = norm(build, hidden, "post_mlp_norm")
    if not build.kernels.traits.keeps_undropped:
        hidden = drop(build, hidden, "mlp_dropout")
    hidden = _sum(build, x, hidden, "mlp")
    return norm(build, hidden, "mlp_norm") if placement == "post-residual" else hidden


def _sum(build: Build, x: Tensor, branch: Tensor, part: str) -> Tensor:
    """x + branch; Phi-3 drops inside the sum, so the branch before dropout lives until then."""
    branch = after_sum(build, x, branch, part)
    if build.kernels.traits.keeps_undropped:
        dropped = drop(build, branch, f"{part}_dropout")
        build.at(f"{part}_residual", "residual")
        return add(x, dropped)
    build.at(f"{part}_residual", "residual")
    return add(x, branch)


def gpt2(build: Build, x: Tensor, context: Context) -> Tensor:
    """The pre-norm layer; both branches live until the layer returns."""
    hidden = norm(build, x, "attn_norm")
    attended, _weights = attend(build, hidden, context)
    hidden = _sum(build, x, attended, "attn")
    residual = hidden
    hidden = norm(build, hidden, "mlp_norm")
    fed = dropped_mlp(build, hidden)
    return _sum(build, residual, fed, "mlp")


def dropped_mlp(build: Build, x: Tensor) -> Tensor:
    """An MLP module with dropout at its end."""
    out = mlp(build, x)
    return drop(build, out, "mlp_dropout")


def openai_gpt(build: Build, x: Tensor, context: Context) -> Tensor:
    """GPT-1: norms after the sums."""
    attended, _weights = attend(build, x, context)
    normed = norm(build, _sum(build, x, attended, "attn"), "attn_norm")
    fed = dropped_mlp(build, normed)
    return norm(build, _sum(build, normed, fed, "mlp"), "mlp_norm")


def gpt_neox(build: Build, x: Tensor, context: Context) -> Tensor:
    """Attention and MLP side by side, a norm each; or one after the other."""
    attended, _weights = attend(build, norm(build, x, "attn_norm"), context)
    attended = drop(build, attended, "attn_dropout")
    if not build.config.parallel_block:
        attended = _sum(build, attended, x, "attn")
        fed = mlp(build, norm(build, attended, "mlp_norm"))
        fed = drop(build, fed, "mlp_dropout")
        return _sum(build, fed, attended, "mlp")
    fed = mlp(build, norm(build, x, "mlp_norm"))
    fed = drop(build, fed, "mlp_dropout")
    return parallel_sum(build, fed, attended, x)


def parallel_sum(build: Build, first: Tensor, second: Tensor, x: Tensor) -> Tensor:
    """first + second + x."""
    build.at("mlp_residual", "residual")
    return add(add(first, second), x)


def gptj(build: Build, x: Tensor, context: Context) -> Tensor:
    """Attention and MLP of one norm; the attention weights go to the caller."""
    hidden = norm(build, x, "attn_norm")
    attended, weights = gptj_attention(build, hidden, context)
    fed = dropped_mlp(build, hidden)
    hidden = parallel_sum(build, attended, fed, x)
    hand_over(build, weights)
    return hidden


def bloom(build: Build, x: Tensor, context: Context) -> Tensor:
    """Dropout and sum happen inside attention and MLP, while their locals live."""
    hidden = norm(build, x, "attn_norm")
    attended, weights = bloom_attention(build, hidden, x, context)
    hidden = norm(build, attended, "mlp_norm")
    out = bloom_mlp(build, hidden, attended)
    hand_over(build, weights)
    return out


def falcon(build: Build, x: Tensor, context: Context) -> Tensor:
    """Parallel with one norm or two, or (RW) sequential; the parallel sum is in place."""
    config, residual = build.config, x
    hidden = norm(build, x, "attn_norm")
    mlp_input = hidden
    if config.parallel_block and config.parallel_norms == 2:
        mlp_input = norm(build, x, "mlp_norm")
    attended, weights = falcon_attention(build, hidden, context)
    if not config.parallel_block:
        residual = dropout_add(build, attended, residual, config.attention_dropout, "attn")
        mlp_input = norm(build, residual, "mlp_norm")
    fed = falcon_mlp(build, mlp_input)
    if config.parallel_block:
        build.at("attn_residual", "residual")
        fed = add_in_place(fed, attended)
    out = dropout_add(build, fed, residual, config.residual_dropout, "mlp")
    hand_over(build, weights)
    return out


def hand_over(build: Build, weights: Tensor | None) -> None:
    """The model's loop keeps what a layer returned until the next one has returned."""
    if not build.tape.recomputing:
        build.held = weights


_BLOCKS = {
    "sequential": sequential, "gpt2": gpt2, "openai-gpt": openai_gpt, "gpt_neox": gpt_neox,
    "gptj": gptj, "bloom": bloom, "falcon": falcon, "bert": bert_block, "t5": t5_block,
}  # fmt: skip
