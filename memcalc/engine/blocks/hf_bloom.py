"""BLOOM's own attention and GELU.

Shapes: x (b, s, h); q, k, v (b a, s, d); bias (b a, 1, s). ALiBi and the scaled product are one
baddbmm. The GELU is an autograd function that keeps its input and computes both ways by hand.
Source: transformers 5.23, models/bloom/modeling_bloom.py. Checked by: oracle/test_hf_families.py.
"""

from __future__ import annotations

from typing import Any

from memcalc.engine.aten.matmul import baddbmm, bmm
from memcalc.engine.aten.pointwise import add, dropout, out_like, softmax_last, to
from memcalc.engine.aten.shape import permute, reshape, select
from memcalc.engine.autograd import Grads, Node, node_for
from memcalc.engine.blocks.attention import HEADS_FIRST
from memcalc.engine.blocks.cache import cached
from memcalc.engine.blocks.embedding import Context
from memcalc.engine.blocks.hf_attention import Attended
from memcalc.engine.blocks.hf_falcon import dropout_add
from memcalc.engine.blocks.mlp import down, up
from memcalc.engine.build import Build
from memcalc.engine.sizes import number
from memcalc.engine.tensors import Tensor


def bloom_attention(build: Build, x: Tensor, residual: Tensor, context: Context) -> Attended:
    """residual + attention(x), and the attention weights."""
    b, s, h, a, d = (build[letter] for letter in "bshad")
    build.at("qkv_proj", "attention")
    fused = build.linear(x, "qkv_proj", (h, a * d * 3), build.config.attention_bias)
    query, key, value = _three(build, fused)
    key, value = cached(build, key, value)
    build.at("attention", "attention")
    keys = key.shape[2]
    query = reshape(query, (b * a, s, d))
    key = permute(reshape(key, (b * a, keys, d)), (0, 2, 1))
    value = reshape(value, (b * a, keys, d))
    scores = baddbmm(query, key)
    weights = reshape(scores, (b, a, s, keys))
    weights = add(weights, context[-1])
    probs = to(softmax_last(to(weights, "fp32")), query.dtype)
    if build.kernels.use_dropout:
        probs = dropout(probs, build.config.attention_dropout)
    flat = reshape(probs, (b * a, s, keys))
    out = bmm(flat, value)
    out = reshape(permute(reshape(out, (b, a, s, d)), HEADS_FIRST), (b, s, a * d))
    build.at("o_proj", "attention")
    projected = build.linear(out, "o_proj", (a * d, h), build.config.attention_output_bias)
    return dropout_add(build, projected, residual, build.config.residual_dropout, "attn"), probs


def _three(build: Build, fused: Tensor) -> tuple[Tensor, ...]:
    """q, k and v of each head lie together; each is selected, with a gradient of full width."""
    fused = reshape(fused, (build["b"], build["s"], build["a"], number(3), build["d"]))
    return tuple(permute(select(fused, 3), HEADS_FIRST) for _ in range(3))


def bloom_mlp(build: Build, x: Tensor, residual: Tensor) -> Tensor:
    """residual + down(gelu(up(x)))."""
    hidden = bloom_gelu(build, up(build, x))
    projected = down(build, hidden)
    return dropout_add(build, projected, residual, build.config.residual_dropout, "mlp")


def bloom_gelu(build: Build, x: Tensor) -> Tensor:
    """0.5 x (1 + tanh(c x (1 + 0.044715 x x))): keeps x; both ways are separate operators."""
    build.at("activation", "mlp")
    node = node_for(_gelu_backward, x)
    if node:
        node.save(x, "dgrad")
    half = out_like("mul.Tensor", x)
    inner = _tanh_of_cubic(x)
    inner = out_like("add.Tensor", inner)
    out = _of_two("mul.Tensor", half, inner)
    del half, inner
    return node.output(out) if node else out


def _of_two(name: str, x: Tensor, y: Tensor) -> Tensor:
    """The result of an element-wise operator on tensors of one shape."""
    x.tape.loads(x, y)
    return out_like(name, x)


def _tanh_of_cubic(x: Tensor) -> Tensor:
    scaled = out_like("mul.Tensor", x)
    cubic = out_like("mul.Tensor", x)
    cubic = _of_two("mul.Tensor", cubic, x)
    cubic = out_like("add.Tensor", cubic)
    product = _of_two("mul.Tensor", scaled, cubic)
    del scaled, cubic
    return out_like("tanh", product)


def _gelu_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    x = saved[0]
    tanh_out = _tanh_of_cubic(x)
    half = out_like("mul.Tensor", x)
    slope = _of_two("mul.Tensor", tanh_out, tanh_out)
    slope = out_like("rsub.Scalar", slope)
    poly = out_like("mul.Tensor", x)
    poly = _of_two("mul.Tensor", poly, x)
    poly = out_like("add.Tensor", poly)
    product = _of_two("mul.Tensor", slope, poly)
    del slope, poly
    left = _of_two("mul.Tensor", half, product)
    del half, product
    right = out_like("add.Tensor", tanh_out)
    right = out_like("mul.Tensor", right)
    both = _of_two("add.Tensor", left, right)
    del left, right
    out = _of_two("mul.Tensor", both, x)
    del tanh_out, both
    return [out]
