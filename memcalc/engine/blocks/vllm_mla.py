"""vLLM's latent attention: prompts expand the latent, decode steps work on the latents themselves.

Symbols as in blocks/mla.py. A prompt's keys and values are made of the latents (kv_b_proj), those of
positions that are cached already too; values are padded to the width of keys for FlashAttention-2 (its
successor on Hopper needs none, which is not taken into account). A step of few new positions multiplies
queries by the keys' half of kv_b_proj, attends over the latents as one key head of width c + d_r whose
first c columns are the value, and multiplies the result by the values' half; both halves are views.
Source: vllm-project/vllm, vllm/v1/attention/backends/mla/common.py, vllm/model_executor/models/
deepseek_v2.py; DeepSeek-V2 (arXiv:2405.04434), sec. 2.1.2 (absorbing). Checked by:
unit/test_serving_vllm.py.
"""

from __future__ import annotations

from memcalc.engine.aten.latent import pad_last
from memcalc.engine.aten.shape import cat, permute, reshape, split
from memcalc.engine.blocks.attention import HEADS_FIRST
from memcalc.engine.blocks.cache import cached
from memcalc.engine.blocks.vllm_attention import attended
from memcalc.engine.blocks.vllm_parts import normed, summed
from memcalc.engine.build import Build
from memcalc.engine.kernel_log import gemm
from memcalc.engine.sizes import ONE, Size
from memcalc.engine.tensors import Tensor


def vllm_mla(build: Build, x: Tensor) -> Tensor:
    """Latent attention of x (b, s, h): (b, s, h), summed over tp ranks."""
    b, s, a, h = (build[letter] for letter in "bsah")
    query, latent, key_rot = _projected(build, x)
    latent = normed(build, latent, "kv_a_norm", build["c"])
    query = reshape(query, (b, s, a, build["d"]))
    key_rot = reshape(key_rot, (b, ONE, s, build["d_r"]))
    build.at("rope", "attention")
    build.tape.in_place("rotary_embedding", split(query, (build["d_n"], build["d_r"]))[1], key_rot)
    latent = reshape(latent, (b, ONE, s, build["c"]))
    latent, key_rot = cached(build, latent, key_rot)
    build.at("kv_b_proj", "attention")
    width = a * (build["d_n"] + build["d_v"])
    build.param("kv_b_proj.weight", (width, build["c"]))
    few = build.cache is not None and build.cache.kind.few
    out = (_absorbed if few else _expanded)(build, query, latent, key_rot)
    del query, latent, key_rot
    build.at("o_proj", "attention")
    out = reshape(out, (b, s, a * build["d_v"]))
    bias = build.config.attention_output_bias
    return summed(build, build.linear(out, "o_proj", (a * build["d_v"], h), bias))


def _projected(build: Build, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (b, s, a d), latents (b, s, c) and rotary keys (b, s, d_r); narrow products are joined."""
    config, h = build.config, build["h"]
    assert config.mla is not None
    width, narrow = build["a"] * build["d"], build["c"] + build["d_r"]
    if config.mla.q_lora_rank is None:
        build.at("q_proj", "attention")
        query = build.linear(x, "q_proj", (h, width), False)
        build.at("kv_a_proj", "attention")
        both = build.linear(x, "kv_a_proj", (h, narrow), config.attention_bias)
        return query, *_two(both, build["c"], build["d_r"])
    build.at("qkv_a_proj", "attention")
    every = build.linear(x, "qkv_a_proj", (h, build["q_r"] + narrow), config.attention_bias)
    low, latent, key_rot = split(every, (build["q_r"], build["c"], build["d_r"]))
    low = normed(build, low, "q_a_norm", build["q_r"])
    build.at("q_b_proj", "attention")
    return build.linear(low, "q_b_proj", (build["q_r"], width), False), latent, key_rot


def _two(x: Tensor, first: Size, second: Size) -> tuple[Tensor, Tensor]:
    left, right = split(x, (first, second))
    return left, right


def _expanded(build: Build, query: Tensor, latent: Tensor, key_rot: Tensor) -> Tensor:
    """Keys (b, a, keys, d) and values made of the latents, then attention: (b, s, a, d_v)."""
    b, a, d_n, d_v = (build[letter] for letter in ("b", "a", "d_n", "d_v"))
    keys, tape = latent.shape[2], build.tape
    width = a * (d_n + d_v)
    tape.ran(gemm("mm", "forward", (ONE, b * keys, width, build["c"]), latent.dtype))
    both = tape.empty("mm", (b, keys, a, d_n + d_v), latent.dtype)
    key, value = split(permute(both, HEADS_FIRST), (d_n, d_v))
    build.at("attention", "attention")
    key = cat((key, key_rot.view_as((b, a, keys, build["d_r"]), None, None)), -1, build["d"])
    padded = pad_last(value, build["d"]) if d_v is not build["d"] else value
    out = attended(build, permute(query, HEADS_FIRST), key, padded)
    if d_v is build["d"]:
        return out
    tape.loads_bytes(out.numel * 2)
    return tape.empty("contiguous", (b, build["s"], a, d_v), out.dtype)


def _absorbed(build: Build, query: Tensor, latent: Tensor, key_rot: Tensor) -> Tensor:
    """Attention over the latents: (b, s, a, d_v)."""
    b, s, a = (build[letter] for letter in "bsa")
    c, d_n, d_v, d_r = (build[letter] for letter in ("c", "d_n", "d_v", "d_r"))
    tape, dtype, rows = build.tape, query.dtype, b * s
    _, query_rot = split(query, (d_n, d_r))
    tape.ran(gemm("mm_by_head", "forward", (a, rows, c, d_n), dtype))
    wide = tape.empty("mm_by_head", (b, s, a, c), dtype)
    wide = cat((wide, query_rot), -1, c + d_r)
    build.at("attention", "attention")
    joined = latent.view_as((b, ONE, latent.shape[2], c + d_r), None, None)  # one row of the pool
    _read = attended(build, permute(wide, HEADS_FIRST), joined, latent)
    del wide
    build.at("kv_b_proj", "attention")
    tape.ran(gemm("mm_by_head", "forward", (a, rows, d_v, c), dtype))
    return tape.empty("mm_by_head", (b, s, a, d_v), dtype)
