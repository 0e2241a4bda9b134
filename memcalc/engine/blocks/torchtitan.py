"""torchtitan's attention: pairs rotated as complex numbers in fp32, every head its own keys.

Shapes: x (b, s, h); until the kernel runs heads lie inside tokens, (b, s, a, d). Keys and values are
copied to all a query heads. The locals of a `forward` are locals here, so they live as long. Norms
around it are written out in fp32 (norm.py), the feed-forward is the plain decoder's.
Source: pytorch/torchtitan torchtitan/models/llama/model.py, norms.py (2024-12).
Checked by: oracle/test_own_layers.py, event for event; compiled: oracle/test_own_layers_compiled.py.
"""

from __future__ import annotations

from memcalc.engine.aten.latent import as_complex, as_real, rotate_complex
from memcalc.engine.aten.pointwise import to
from memcalc.engine.aten.shape import contiguous, permute, reshape
from memcalc.engine.blocks.attention import HEADS_FIRST, fused_core
from memcalc.engine.blocks.embedding import Context
from memcalc.engine.blocks.torchtune import to_all_heads
from memcalc.engine.build import Build
from memcalc.engine.parallel.tensor.tensor_layers import whole_stream
from memcalc.engine.sizes import ONE, Size
from memcalc.engine.tensors import Tensor


def torchtitan_attention(build: Build, x: Tensor, context: Context) -> Tensor:
    """Projections, rotation, copies of keys and values, the kernel, the output projection."""
    x = whole_stream(build, x, "attn_gather", "attention")
    a, k, width = build["a"], build["k"], build["a"] * build["d"]
    query = _project(build, x, "q_proj", a)
    key = _project(build, x, "k_proj", k)
    value = _project(build, x, "v_proj", k)
    query, key = (_by_heads(build, part, n) for part, n in ((query, a), (key, k)))
    value = _by_heads(build, value, k)
    query, key = _rotate(build, query, key, context[0])
    keys = to_all_heads(build, key)
    values = to_all_heads(build, value)
    query = permute(query, HEADS_FIRST)
    key, value = permute(keys, HEADS_FIRST), permute(values, HEADS_FIRST)
    build.at("attention", "attention")
    out = fused_core(build, query, key, value)
    out = contiguous(permute(out, HEADS_FIRST))
    out = reshape(out, (build["b"], build["s"], width))
    build.at("o_proj", "attention")
    return build.linear(out, "o_proj", (width, build["h"]), build.config.attention_output_bias)


def _project(build: Build, x: Tensor, name: str, heads: Size) -> Tensor:
    build.at(name, "attention")
    return build.linear(x, name, (build["h"], heads * build["d"]), build.config.attention_bias)


def _by_heads(build: Build, x: Tensor, heads: Size) -> Tensor:
    return reshape(x, (build["b"], build["s"], heads, build["d"]))


def _rotate(build: Build, q: Tensor, k: Tensor, angles: Tensor) -> tuple[Tensor, Tensor]:
    """fp32 copies of q and k as complex numbers, times rows of a table of unit complex numbers."""
    build.at("rope", "attention")
    half, width = build["r/2"], build["d"]
    table = angles.view_as((ONE, build["s"], ONE, half), None, None)
    q_pairs = as_complex(to(q, "fp32"), half)
    k_pairs = as_complex(to(k, "fp32"), half)
    q_out = as_real(rotate_complex(q_pairs, table), width)
    k_out = as_real(rotate_complex(k_pairs, table), width)
    return to(q_out, q.dtype), to(k_out, k.dtype)
