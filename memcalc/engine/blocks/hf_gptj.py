"""GPT-J's own attention: rotary tables gathered in every block, interleaved pairs, scores in fp32.

Shapes: query, key, value (b, s, a, d) until rotated, then (b, a, s, d); r rotated columns.
Source: transformers 5.23, models/gptj/modeling_gptj.py. Checked by: oracle/test_hf_families.py.
"""

from __future__ import annotations

from memcalc.engine.aten.latent import flatten_pairs, stack_last
from memcalc.engine.aten.matmul import matmul_heads
from memcalc.engine.aten.pointwise import add, dropout, mul, neg, scale, softmax_last, to
from memcalc.engine.aten.shape import (
    cat,
    contiguous,
    every_second,
    permute,
    reshape,
)
from memcalc.engine.blocks.attention import HEADS_FIRST
from memcalc.engine.blocks.cache import cached
from memcalc.engine.blocks.embedding import Context
from memcalc.engine.blocks.hf_attention import Attended, cut_rotated
from memcalc.engine.blocks.residual import drop
from memcalc.engine.build import Build
from memcalc.engine.sizes import ONE
from memcalc.engine.tensors import Tensor


def gptj_attention(build: Build, x: Tensor, context: Context) -> Attended:
    """Projections, rotary, scores in fp32, output projection; every local lives to the end."""
    query, key, value = (_projection(build, x, letter) for letter in "qkv")
    value = permute(value, HEADS_FIRST)
    build.at("rope", "attention")
    repeated, index, sin, cos = _positions(build)
    k_rotated, k_pass = cut_rotated(build, key)
    q_rotated, q_pass = cut_rotated(build, query)
    k_rotated = _rotate(build, k_rotated, sin, cos)
    q_rotated = _rotate(build, q_rotated, sin, cos)
    key = cat((k_rotated, k_pass), -1, build["d"])
    query = cat((q_rotated, q_pass), -1, build["d"])
    key = permute(key, HEADS_FIRST)
    query = permute(query, HEADS_FIRST)
    key, value = cached(build, key, value)
    build.at("attention", "attention")
    out, weights = _attend(build, query, key, value, context[-1])
    width = build["a"] * build["d"]
    out = reshape(contiguous(permute(out, HEADS_FIRST)), (build["b"], build["s"], width))
    build.at("o_proj", "attention")
    out = build.linear(out, "o_proj", (width, build["h"]), build.config.attention_output_bias)
    out = drop(build, out, "attn_dropout")
    return out, weights


def _projection(build: Build, x: Tensor, letter: str) -> Tensor:
    build.at(f"{letter}_proj", "attention")
    width = build["a"] * build["d"]
    out = build.linear(x, f"{letter}_proj", (build["h"], width), build.config.attention_bias)
    return reshape(out, (build["b"], build["s"], build["a"], build["d"]))


def _positions(build: Build) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The repeated table (1, P, r), the repeated index, sin and cos (1, s, 1, r/2) of one tensor."""
    tape, s = build.tape, build["s"]
    width, rows = build["r"], build["N"]
    repeated = tape.empty("repeat", (ONE, rows, width), "fp32")
    index = tape.empty("repeat", (ONE, s, width), "int64")
    gathered = tape.empty("gather", (ONE, s, width), "fp32")
    both = to(gathered, build.kernels.compute_dtype)
    del gathered
    half = both.view_as((ONE, s, ONE, build["r/2"]), None, both.strides[:2] + (ONE, ONE))
    return repeated, index, half, half


def _rotate(build: Build, x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
    sin = _twice(build, sin)
    cos = _twice(build, cos)
    return add(mul(x, cos), mul(_rotate_every_two(build, x), sin))


def _twice(build: Build, table: Tensor) -> Tensor:
    return build.tape.empty("clone", (ONE, build["s"], ONE, build["r"]), table.dtype)


def _rotate_every_two(build: Build, x: Tensor) -> Tensor:
    first, second = every_second(x, build["r/2"]), every_second(x, build["r/2"])
    stacked = stack_last(neg(second), first)
    return flatten_pairs(stacked, x.shape[-1])


def _attend(build: Build, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Attended:
    query = to(query, "fp32")
    key = to(key, "fp32")
    keys = build.narrow(permute(key, (0, 1, 3, 2)))
    weights = matmul_heads(build.narrow(query), keys)
    del keys
    weights = scale(weights, "div.Tensor")
    weights = add(weights, mask)
    weights = softmax_last(to(weights, "fp32") if build.kernels.autocast else weights)
    weights = to(weights, value.dtype)
    if build.kernels.use_dropout:
        weights = dropout(weights, build.config.attention_dropout)
    return matmul_heads(weights, value), weights
