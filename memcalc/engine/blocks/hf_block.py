"""transformers' decoder layers: the order of norms, branches and sums, and what stays alive.

Source: transformers 5.23, models/*/modeling_*.py. Checked by: oracle/test_hf_families.py.
"""

from __future__ import annotations

from memcalc.engine.aten.pointwise import add
from memcalc.engine.blocks.embedding import Context
from memcalc.engine.blocks.hf_attention import Attended, interface_attention, residual_dropout
from memcalc.engine.blocks.mlp import activated, down, mlp, up
from memcalc.engine.blocks.norm import norm
from memcalc.engine.build import Build
from memcalc.engine.tensors import Tensor


def hf_block(build: Build, x: Tensor, context: Context) -> Tensor:
    """One layer of the family's own code: (b, s, h) to (b, s, h)."""
    return _BLOCKS[build.kernels.traits.block](build, x, context)


def attend(build: Build, x: Tensor, context: Context) -> Attended:
    """The family's attention module."""
    return interface_attention(build, x, context)


def sequential(build: Build, x: Tensor, context: Context) -> Tensor:
    """Attention, sum, MLP, sum, with norms before, after, around or after the sums."""
    placement = build.config.norm_placement
    before, after = placement in ("pre", "sandwich"), placement in ("post", "sandwich")
    hidden = norm(build, x, "attn_norm") if before else x
    hidden, _weights = attend(build, hidden, context)
    if after:
        hidden = norm(build, hidden, "post_attn_norm")
    hidden = _join(build, x, hidden, "attn")
    if placement == "post-residual":
        hidden = norm(build, hidden, "attn_norm")
    x = hidden
    if before:
        hidden = norm(build, hidden, "mlp_norm")
    if build.kernels.traits.inline_mlp:
        hidden = up(build, hidden)
        hidden = activated(build, hidden)
        hidden = down(build, hidden)
    else:
        hidden = mlp(build, hidden)
    if after:
        hidden = norm(build, hidden, "post_mlp_norm")
    hidden = _join(build, x, hidden, "mlp")
    return norm(build, hidden, "mlp_norm") if placement == "post-residual" else hidden


def _join(build: Build, x: Tensor, branch: Tensor, part: str) -> Tensor:
    """x + dropout(branch)."""
    traits = build.kernels.traits
    dropped = branch
    if part == "mlp" or not traits.drop_inside:
        dropped = residual_dropout(build, branch, f"{part}_dropout")
    if not traits.keeps_undropped:
        branch = dropped
    build.at(f"{part}_residual", "residual")
    return add(x, dropped)


_BLOCKS = {"sequential": sequential}
