"""Multi-head latent attention: keys and values out of one narrow latent a token.

Symbols: a heads of width d = d_n + d_r for q and k (without, with positions), d_v for v; q_r and c
ranks of the query's and of the keys' and values' latents. The d_r columns of the key are one for
all heads and skip the latent. Training expands keys and values in full. Flash kernels want one
width, so v is padded to d for them and the output cut.
Source: DeepSeek-V2 (arXiv:2405.04434), sec. 2.1; transformers 5.23, models/deepseek_v2 and v3.
Checked by: oracle/test_hf_moe.py, oracle/test_sparse_blocks.py.
"""

from __future__ import annotations

from memcalc.engine.aten.latent import (
    as_complex,
    as_real,
    cut,
    fill,
    pad_last,
    rotate_complex,
    subtract,
)
from memcalc.engine.aten.pointwise import add, constant, mul, neg, to
from memcalc.engine.aten.shape import (
    cat,
    contiguous,
    every_second,
    expand,
    permute,
    reshape,
    split,
)
from memcalc.engine.blocks.attention import HEADS_FIRST, core
from memcalc.engine.blocks.cache import cached
from memcalc.engine.blocks.embedding import Context
from memcalc.engine.blocks.hf_attention import Attended, kernel
from memcalc.engine.blocks.norm import norm
from memcalc.engine.build import Build
from memcalc.engine.sizes import ONE
from memcalc.engine.tensors import Tensor


def mla(build: Build, x: Tensor, context: Context) -> Attended:
    """Attention of x (b, s, h): output (b, s, h), and the weights where eager code returns them."""
    b, s, a = build["b"], build["s"], build["a"]
    query = permute(reshape(_queries(build, x), (b, s, a, build["d"])), HEADS_FIRST)
    q_pass, q_rot = split(query, (build["d_n"], build["d_r"]))
    build.at("kv_a_proj", "attention")
    width = build["c"] + build["d_r"]
    compressed = build.linear(x, "kv_a_proj", (build["h"], width), build.config.attention_bias)
    latent, k_rot = split(compressed, (build["c"], build["d_r"]))
    latent = norm(build, latent, "kv_a_norm", build["c"])
    latent = reshape(latent, (b, ONE, s, build["c"]))
    k_rot = reshape(k_rot, (b, ONE, s, build["d_r"]))
    build.at("rope", "attention")
    q_rot, k_rot = _rotated(build, q_rot, k_rot, context)
    latent, k_rot = cached(build, latent, k_rot)
    build.at("rope", "attention")
    query = cat((q_pass, q_rot), -1, build["d"])
    key, value = _expanded(build, latent, k_rot)
    out, weights = _attend(build, (query, key, value), context)
    build.at("o_proj", "attention")
    width = a * build["d_v"]
    out = contiguous(reshape(out, (b, s, width)))
    bias = build.config.attention_output_bias
    return build.linear(out, "o_proj", (width, build["h"]), bias), weights


def _queries(build: Build, x: Tensor) -> Tensor:
    """Queries (b, s, a d): by way of a latent of rank q_r, or in one projection (V2-Lite)."""
    mla_config = build.config.mla
    assert mla_config is not None
    width = build["a"] * build["d"]
    if mla_config.q_lora_rank is None:
        build.at("q_proj", "attention")
        return build.linear(x, "q_proj", (build["h"], width), False)
    return _from_latent(build, norm(build, _query_latent(build, x), "q_a_norm", build["q_r"]))


def _query_latent(build: Build, x: Tensor) -> Tensor:
    build.at("q_a_proj", "attention")
    features = (build["h"], build["q_r"])
    return build.linear(x, "q_a_proj", features, build.config.attention_bias)


def _from_latent(build: Build, latent: Tensor) -> Tensor:
    build.at("q_b_proj", "attention")
    return build.linear(latent, "q_b_proj", (build["q_r"], build["a"] * build["d"]), False)


def _rotated(build: Build, q: Tensor, k: Tensor, context: Context) -> tuple[Tensor, Tensor]:
    """Rotary embedding of q (b, a, s, d_r) and k (b, 1, s, d_r), by the family's code."""
    if not build.kernels.hf:
        return _by_halves(build, q, context), _by_halves(build, k, context)
    if build.config.model_type == "deepseek_v2":
        return _by_complex(build, q, k, context[0])
    half = build["d_r/2"]
    cos, sin = cut(context[0], half), cut(context[1], half)
    q1, q2 = every_second(q, half), every_second(q, half)
    k1, k2 = every_second(k, half), every_second(k, half)
    q_out = _pairs(build, q1, q2, (cos, sin))
    return q_out, _pairs(build, k1, k2, (cos, sin))


def _by_halves(build: Build, x: Tensor, context: Context) -> Tensor:
    """The plain decoder's way: x cos + (-x2, x1) sin."""
    return add(mul(x, context[0]), mul(_half_turn(build, x), context[1]))


def _half_turn(build: Build, x: Tensor) -> Tensor:
    half = build["d_r/2"]
    first, second = split(x, (half, half))
    return cat((neg(second), first), -1, build["d_r"])


def _pairs(build: Build, x1: Tensor, x2: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """DeepSeek-V3: neighbours are rotated together and written as two halves."""
    cos, sin = tables
    parts = (
        subtract(mul(x1, cos), mul(x2, sin)),
        add(mul(x2, cos), mul(x1, sin)),
    )
    return cat(parts, -1, build["d_r"])


def _by_complex(build: Build, q: Tensor, k: Tensor, angles: Tensor) -> tuple[Tensor, Tensor]:
    """DeepSeek-V2: fp32 copies seen as complex numbers, times unit complex numbers."""
    width = build["d_r"]
    q_complex = as_complex(to(q, "fp32"), build["d_r/2"])
    k_complex = as_complex(to(k, "fp32"), build["d_r/2"])
    q_out = to(as_real(rotate_complex(q_complex, angles), width), q.dtype)
    k_out = to(as_real(rotate_complex(k_complex, angles), width), k.dtype)
    return q_out, k_out


def _expanded(build: Build, latent: Tensor, k_rot: Tensor) -> tuple[Tensor, Tensor]:
    """Keys (b, a, s, d) and values (b, a, s, d_v) out of the latent (b, 1, s, c)."""
    build.at("kv_b_proj", "attention")
    b, s, a, d_n, d_v = build["b"], latent.shape[2], build["a"], build["d_n"], build["d_v"]
    width = a * (d_n + d_v)
    latent = build.linear(latent, "kv_b_proj", (build["c"], width), False)
    latent = permute(reshape(latent, (b, s, a, d_n + d_v)), HEADS_FIRST)
    k_nope, value = split(latent, (d_n, d_v))
    k_rot = expand(k_rot, (b, a, s, build["d_r"]))
    if not build.kernels.hf:
        return cat((k_nope, k_rot), -1, build["d"]), value
    key = constant(build.tape, "new_empty", (b, a, s, build["d"]), k_nope.dtype)
    key = fill(key, k_nope)
    key = fill(key, k_rot)
    return key, value


def _attend(build: Build, qkv: tuple[Tensor, Tensor, Tensor], context: Context) -> Attended:
    """The attention kernel; values padded to the width of keys where it wants one width."""
    query, key, value = qkv
    d_v = build["d_v"]
    build.at("attention", "attention")
    if build.kernels.attention == "flash" and d_v is not build["d"]:
        value = pad_last(value, build["d"])
        out = cut(core(build, query, key, value, context), d_v)
        return contiguous(permute(out, HEADS_FIRST)), None
    if build.kernels.hf:
        return kernel(build, query, key, value, context)
    return permute(core(build, query, key, value, context), HEADS_FIRST), None
