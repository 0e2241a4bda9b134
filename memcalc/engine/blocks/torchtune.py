"""torchtune's decoder layer: norm written out in fp32, rotated pairs in fp32, every head its own keys.

Shapes: x (b, s, h); until the kernel runs heads lie inside tokens, (b, s, a, d). Keys and values are
copied to all a query heads. The locals of a `forward` are locals here, so they live as long. The
kernel of packed samples is compiled flex attention, which keeps what flash does: q, k, v, the output
and a log-sum-exp; with a compiled layer it stands outside the graphs, so all three are kept whole.
Source: pytorch/torchtune torchtune/modules/{transformer,attention,position_embeddings,rms_norm}.py.
Checked by: oracle/test_own_layers.py, event for event; compiled: oracle/test_own_layers_compiled.py.
"""

from __future__ import annotations

from memcalc.engine.aten.latent import flatten_pairs, stack_last, subtract
from memcalc.engine.aten.pointwise import add, mul, to
from memcalc.engine.aten.shape import (
    contiguous,
    expand,
    merge_groups,
    permute,
    reshape,
    select,
    unsqueeze,
)
from memcalc.engine.blocks.attention import HEADS_FIRST, fused_core
from memcalc.engine.blocks.mlp import mlp
from memcalc.engine.blocks.norm import norm
from memcalc.engine.build import Build
from memcalc.engine.sizes import ONE, Size, number
from memcalc.engine.tensors import Tensor


def torchtune_block(build: Build, x: Tensor) -> Tensor:
    """attention(norm(x)) + x, then the sum plus mlp(norm(sum)); attention's result lives to the end."""
    hidden = norm(build, x, "attn_norm")
    attended = _attention(build, hidden)
    build.at("attn_residual", "residual")
    hidden = add(attended, x)
    fed = mlp(build, norm(build, hidden, "mlp_norm"))
    build.at("mlp_residual", "residual")
    return add(hidden, fed)


def _attention(build: Build, x: Tensor) -> Tensor:
    a, width = build["a"], build["a"] * build["d"]
    query = _rotate(build, _project(build, x, "q_proj", a))
    query = permute(query, HEADS_FIRST)
    key = _project(build, x, "k_proj", build["k"], view=False)
    value = _project(build, x, "v_proj", build["k"], view=False)
    key = _rotate(build, _by_heads(build, key, build["k"]))
    key = to_all_heads(build, key)
    value = to_all_heads(build, _by_heads(build, value, build["k"]))
    key, value = permute(key, HEADS_FIRST), permute(value, HEADS_FIRST)
    build.at("attention", "attention")
    out = fused_core(build, query, key, value)
    out = reshape(contiguous(permute(out, HEADS_FIRST)), (build["b"], build["s"], width))
    build.at("o_proj", "attention")
    return build.linear(out, "o_proj", (width, build["h"]), build.config.attention_output_bias)


def _project(build: Build, x: Tensor, name: str, heads: Size, view: bool = True) -> Tensor:
    build.at(name, "attention")
    out = build.linear(x, name, (build["h"], heads * build["d"]), build.config.attention_bias)
    return _by_heads(build, out, heads) if view else out


def _by_heads(build: Build, x: Tensor, heads: Size) -> Tensor:
    return reshape(x, (build["b"], build["s"], heads, build["d"]))


def _rotate(build: Build, x: Tensor) -> Tensor:
    """Each pair (x0, x1) to (x0 c - x1 s, x1 c + x0 s) in fp32; c and s are rows of one table.

    Packed samples take rows by position, a tensor of its own at each use; else the table is read.
    """
    build.at("rope", "attention")
    b, s, half = build["b"], build["s"], build["r/2"]
    shape = (b, s, ONE, half, number(2))
    if build.kernels.traits.packed:
        build.tape.using(())  # table and positions: nothing of this block
        rows = build.tape.empty("index.Tensor", (b, s, half, number(2)), "fp32")
        table = rows.view_as(shape, None, None)
        del rows
    else:
        table = build.tape.external((ONE, *shape[1:]), "fp32")
    pairs = reshape(to(x, "fp32"), (b, s, x.shape[2], half, number(2)))
    out = _rotated(pairs, table)
    out = flatten_pairs(out, x.shape[3])
    return to(out, x.dtype)


def _rotated(pairs: Tensor, table: Tensor) -> Tensor:
    first = subtract(
        mul(select(pairs, 4), select(table, 4)), mul(select(pairs, 4), select(table, 4))
    )
    second = add(mul(select(pairs, 4), select(table, 4)), mul(select(pairs, 4), select(table, 4)))
    return stack_last(first, second)


def to_all_heads(build: Build, x: Tensor) -> Tensor:
    """(b, s, k, d) to (b, s, a, d): one copy, none when k = a; k = 1 is seen a times."""
    b, s, k, d = x.shape
    if build["a"] is k:
        return x
    wide = expand(unsqueeze(x, 3), (b, s, k, build["g"], d))
    if k is ONE:
        return reshape(wide, (b, s, build["a"], d))
    return merge_groups(wide, build["a"], 2)
