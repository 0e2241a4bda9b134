"""Relative positions as in Transformer-XL (Dai et al. 2019, arXiv:1901.02860, sec. 3.3; Gopher, Chinchilla).

A sinusoid of each distance (s, h) is projected to heads in every block; scores are
(q + u) k^T + shift((q + v) r^T), u and v one vector a head. No kernel of PyTorch takes them: eager only.
A closed form over PyTorch's operators, not compared with a model's own code.
"""

from __future__ import annotations

from memcalc.engine.aten.matmul import matmul_heads
from memcalc.engine.aten.pointwise import add, constant
from memcalc.engine.aten.shape import cat, expand, narrow, permute, reshape
from memcalc.engine.build import Build
from memcalc.engine.sizes import ONE
from memcalc.engine.tensors import Tensor


def distance_table(build: Build) -> Tensor:
    """Sinusoids of every distance, (s, h), made once before the blocks."""
    build.at("relative_table", "embedding")
    return constant(build.tape, "cat", (build["s"], build["h"]), build.kernels.compute_dtype)


def relative_scores(build: Build, query: Tensor, keys: Tensor, table: Tensor) -> Tensor:
    """Content and position scores (b, a, s, s) of query and keys (b, a, s, d), not yet scaled."""
    a, s, d = build["a"], build["s"], build["d"]
    build.at("relative_proj", "attention")
    projected = build.linear(table, "relative_proj", (build["h"], a * d), False)
    distances = permute(reshape(projected, (ONE, s, a, d)), (0, 2, 3, 1))
    build.at("attention", "attention")
    content = matmul_heads(_biased(build, query, "content_bias"), permute(keys, (0, 1, 3, 2)))
    distances = expand(distances, (build["b"], a, d, s))
    position = matmul_heads(_biased(build, query, "position_bias"), distances)
    return add(content, _shifted(build, position))


def _biased(build: Build, query: Tensor, name: str) -> Tensor:
    bias = build.param(name, (build["a"], build["d"]))
    return build.narrow(add(query, reshape(bias, (ONE, build["a"], ONE, build["d"]))))


def _shifted(build: Build, scores: Tensor) -> Tensor:
    """Rows moved so that column j holds the score of distance i - j: pad, reshape, cut."""
    b, a, s = build["b"], build["a"], build["s"]
    column = constant(build.tape, "zeros", (b, a, s, ONE), scores.dtype)
    padded = reshape(cat((column, scores), -1), (b, a, s + 1, s))
    return narrow(padded, s, 2)
