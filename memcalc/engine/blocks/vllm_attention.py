"""vLLM's attention: one product for q, k and v, rotary positions in place, keys and values in a pool.

q, k and v are views of the joint product; the rotary kernel works in place on them; new keys and values
are copied into the pool; attention writes into a tensor made before. Soft caps, sinks, windows and ALiBi
are arguments of the attention kernel and make no tensor.
Source: vllm-project/vllm, vllm/model_executor/models/llama.py, qwen3.py, gemma2.py, olmo2.py, gpt_oss.py,
opt.py, falcon.py; vllm/attention/layer.py. Checked by: unit/test_serving_vllm.py.
"""

from __future__ import annotations

from memcalc.engine.aten.fused import attention_ran
from memcalc.engine.aten.shape import permute, reshape, split
from memcalc.engine.blocks.attention import HEADS_FIRST
from memcalc.engine.blocks.cache import cached
from memcalc.engine.blocks.vllm_parts import normed, summed
from memcalc.engine.build import Build
from memcalc.engine.tensors import Tensor


def vllm_attention(build: Build, x: Tensor) -> Tensor:
    """Attention of x (b, s, h): (b, s, h), summed over tp ranks."""
    b, s, a, k, d = (build[letter] for letter in "bsakd")
    config = build.config
    build.at("qkv_proj", "attention")
    widths = (a * d, k * d, k * d)
    total = widths[0] + widths[1] + widths[2]
    qkv = build.linear(x, "qkv_proj", (build["h"], total), config.attention_bias)
    query, key, value = split(qkv, widths)
    if config.qk_norm == "full":
        query = normed(build, query, "q_norm", widths[0])
        key = normed(build, key, "k_norm", widths[1])
    query, key, value = (
        reshape(part, (b, s, heads, d))
        for part, heads in zip((query, key, value), (a, k, k), strict=True)
    )
    if config.qk_norm == "head":
        query, key = normed(build, query, "q_norm", d), normed(build, key, "k_norm", d)
    if config.position_embedding == "rope":
        build.at("rope", "attention")
        build.tape.in_place("rotary_embedding", query, key, key)
    query, key, value = (permute(part, HEADS_FIRST) for part in (query, key, value))
    key, value = cached(build, key, value)
    build.at("attention", "attention")
    if config.attention_sinks:
        build.param("sinks", (a,))
    out = attended(build, query, key, value)
    out = reshape(out, (b, s, a * d))
    del qkv, query, key, value
    build.at("o_proj", "attention")
    out = build.linear(out, "o_proj", (a * d, build["h"]), config.attention_output_bias)
    return summed(build, out)


def attended(build: Build, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """What the attention kernel writes: (b, s, a, width of a value)."""
    build.tape.ran(attention_ran("flash", "forward", query, key, value))
    build.tape.covered("attention_output")
    b, a, s, _ = query.shape
    return build.tape.empty("attention_output", (b, s, a, value.shape[3]), query.dtype)
