"""Seconds of attention kernels, over whole sequences (training, prefill) and over a cache (decode).

shape: (b, a, kv_heads, s_q, s_kv, d_qk, d_v), sequences and heads of one call. A fused kernel gives a
tile of 128 queries of one head to a multiprocessor (SM), which runs over all its keys:

    seconds = t0 + FLOPs (1 + ramp / s_kv) / (P width(d)) + row FLOPs of one tile SMs / P + bytes / W

the third term being the last tiles, which nothing hides, as long backward as forward. Forward runs two
products over the scores, backward five (3 over d_qk, 2 over d_v) at `backward` of the forward's ceiling;
a causal mask leaves half of them and the diagonal. width: P is the ceiling at d = 128; `narrow` and
`wide` are ceilings at 64 and 256 relative to it, between them and beyond by powers of d.
Rates are of 2-byte elements. PyTorch's kernel for fp32 makes a product of three in tf32 on tensor cores
(aten/.../mem_eff_attention/gemm_kernel_utils.h: OpMultiplyAddFastF32), or uses plain fp32 units: it is
slower by as much as such products are, and moves 4 bytes an element; no table has one.
Source of the products: Dao 2023, FlashAttention-2 (arXiv:2307.08691). Constants and errors:
docs/kernels.md. Checked by: unit/test_kernel_times.py.
"""

from __future__ import annotations

from typing import Final

from memcalc.engine.timing.arith import Num, log2, maximum, minimum
from memcalc.errors import unknown
from memcalc.inputs.rates import BASE_DTYPE, AttentionRate, DecodeRate, Rates

#: Products over the scores that a pass runs: (over d_qk, over d_v).
PRODUCTS: Final = {"forward": (1, 1), "recompute": (1, 1), "backward": (3, 2)}
#: Passes over queries, keys, values and results of 2 bytes an element: backward reads five, writes three.
PASSES: Final = {"forward": 1, "recompute": 1, "backward": 2}
QUERY_TILE: Final = 128
WIDTH: Final = 128
#: Products of fp32 as three of tf32 each.
TF32X3: Final = "3xtf32"


def attention_s(
    rates: Rates,
    kernel: str,
    direction: str,
    shape: tuple[Num, ...],
    causal: bool = True,
    dtype: str = BASE_DTYPE,
) -> Num:
    """Seconds of one attention call; kernel flash | efficient | cudnn | eager, or one a calibration names.

    direction: forward | backward | recompute. causal: the last query sees all keys. dtype: of queries and
    keys.
    """
    rate = rates.attention.get(kernel)
    if rate is None:
        raise unknown("attention kernel", kernel, rates.attention)
    if direction not in PRODUCTS:
        raise unknown("direction of attention", direction, PRODUCTS)
    if dtype == "fp32" and not is_of(kernel, dtype):
        rate = _in_fp32(rates, rate)
    return fused_s(rate, direction, shape, causal)


def is_of(kernel: str, dtype: str) -> bool:
    """Whether a rate was measured at a dtype: its name then says so, as `flash fp32 forward`."""
    return dtype in kernel.split()


def _in_fp32(rates: Rates, rate: AttentionRate) -> AttentionRate:
    """The rate of a kernel measured on 2-byte elements, at fp32."""
    base = max(rates.gemm[name].flops_per_s for name in ("bf16", "fp16"))
    reached = max(rates.gemm["fp32"].flops_per_s, rates.gemm["tf32"].flops_per_s / 3)
    return rate._replace(
        forward_flops_per_s=rate.forward_flops_per_s * min(1.0, reached / base),
        bytes_per_s=rate.bytes_per_s / 2,
    )


def run_dtype(rates: Rates, dtype: str) -> str:
    """What fused attention's products run in: fp32 as three of tf32 where that is faster."""
    faster = rates.gemm["tf32"].flops_per_s > 3 * rates.gemm["fp32"].flops_per_s
    return TF32X3 if dtype == "fp32" and faster else dtype


def fused_s(rate: AttentionRate, direction: str, shape: tuple[Num, ...], causal: bool) -> Num:
    """Seconds of one call at one kernel's rate."""
    b, a, kv_heads, s_q, s_kv, d_qk, d_v = shape
    over_qk, over_v = PRODUCTS[direction]
    ceiling = rate.forward_flops_per_s * _width(rate, d_qk, d_v)
    last = 2 * (d_qk + d_v) * s_kv * QUERY_TILE * rate.row * rate.multiprocessors / ceiling
    if direction == "backward":
        ceiling = ceiling * rate.backward
    seen = seen_share(s_q, s_kv) if causal else 1.0
    scores = b * a * s_q * s_kv * seen * (1 + rate.ramp / s_kv)
    products = 2 * (over_qk * d_qk + over_v * d_v) * scores / ceiling
    moved = 2 * PASSES[direction] * b * (a * s_q + kv_heads * s_kv) * (d_qk + d_v)
    return rate.t0_s + products + last + moved / rate.bytes_per_s


def seen_share(s_q: Num, s_kv: Num) -> Num:
    """Share of the scores that a causal mask leaves, the last query seeing all keys: 1/2 and the diagonal."""
    return 1 - (s_q - 1) / (2 * s_kv)


def _width(rate: AttentionRate, d_qk: Num, d_v: Num) -> Num:
    """The ceiling at this head width relative to that at 128."""
    octaves = log2((d_qk + d_v) / (2 * WIDTH))
    return rate.wide ** maximum(octaves, 0) * rate.narrow ** (-minimum(octaves, 0))


def decode_attention_s(
    rates: Rates, shape: tuple[Num, ...], cache_bytes: Num = 2, dtype: str = ""
) -> Num:
    """Seconds of one decode step's attention: s_q new positions over a cache of s_kv each.

    cache_bytes: of one element of the cache. dtype: of the products, where rates were measured for it.
    """
    return cached_s(rates.decode_by.get(dtype, rates.decode), shape, cache_bytes)


def cached_s(rate: DecodeRate, shape: tuple[Num, ...], cache_bytes: Num = 2) -> Num:
    """Seconds of one call: (t0^e + (cache / W + FLOPs / P)^e)^(1 / e) + chain.

    The cache is read once for all query heads of a key head, slower for a single one. chain: the keys that
    one multiprocessor runs over for the query heads of a key head, fewer where a call has more key heads.
    """
    b, a, kv_heads, s_q, s_kv, d_qk, d_v = shape
    reads = 1 + rate.alone * (kv_heads / a) ** 2
    moved = b * (cache_bytes * reads * kv_heads * s_kv + 2 * a * s_q) * (d_qk + d_v)
    flops = 2 * b * a * s_q * s_kv * (d_qk + d_v)
    streamed = moved / rate.bytes_per_s + flops / rate.flops_per_s
    e = rate.exponent
    together = (rate.t0_s**e + streamed**e) ** (1 / e)
    wide = (d_qk + d_v) / (2 * WIDTH) * s_q * a / kv_heads
    return together + rate.chain_s * wide * s_kv / (1 + rate.spread * b * kv_heads)
