"""vLLM's decoder layer: fused projections, a norm that adds the residual in place, keys and values in a pool.

Shapes: x and residual (b, s, h), all positions of a batch one after the other. The kernel of rotary
positions works in place on q and k, which are views of the joint projection; new keys and values are
copied into the pool; attention writes into a tensor made before. gate and up are one product, and one
kernel makes act(gate) * up of it. The residual stream goes from layer to layer beside x.
Source: vllm-project/vllm, vllm/model_executor/models/llama.py, qwen2.py, qwen3.py, mixtral.py, layers/.
Checked by: unit/test_serving_vllm.py (allocations and kernels of a layer, written out by hand).
"""

from __future__ import annotations

from memcalc.engine.aten.fused import attention_ran, embedding
from memcalc.engine.aten.pointwise import out_like
from memcalc.engine.aten.shape import narrow, permute, reshape, split
from memcalc.engine.blocks.attention import HEADS_FIRST
from memcalc.engine.blocks.cache import cached
from memcalc.engine.blocks.loss import head
from memcalc.engine.blocks.moe import moe
from memcalc.engine.build import Build
from memcalc.engine.kernel_log import read_bytes
from memcalc.engine.kernels import BlockKind
from memcalc.engine.sizes import ONE
from memcalc.engine.tensors import Tensor
from memcalc.errors import NotInThisVersionError
from memcalc.inputs.model import ModelConfig


def vllm_logits(build: Build, ids: Tensor, layers: list[BlockKind]) -> Tensor:
    """Logits (b, 1, V) of the last position of every sequence."""
    build.at("embedding", "embedding")
    x = embedding(build.param("embedding.weight", (build["V"], build["h"])), ids)
    residual: Tensor | None = None
    for index, kind in enumerate(layers):
        build.tape.mark("block", index)
        build.tape.block, build.kind = index, kind
        x, residual = _layer(build, x, residual)
        build.tape.block = -1
    build.tape.mark("blocks end", -1)
    x, residual = _added_norm(build, x, residual, "final_norm")
    build.at("lm_head", "head")
    return head(build, _last(build, x))


def _last(build: Build, x: Tensor) -> Tensor:
    """The rows of the last positions, gathered into a tensor of their own."""
    last = narrow(x, ONE, 1)
    build.tape.loads(last)
    return build.tape.empty("index_select", last.shape, last.dtype)


def _layer(build: Build, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
    x, residual = _added_norm(build, x, residual, "attn_norm")
    x = _attention(build, x)
    x, residual = _added_norm(build, x, residual, "mlp_norm")
    return (moe(build, x)[0] if build.kind.sparse else _mlp(build, x)), residual


def _added_norm(build: Build, x: Tensor, residual: Tensor | None, op: str) -> tuple[Tensor, Tensor]:
    """residual + x, and its norm: both in place but for the first, which makes a tensor."""
    build.at(op, "norm")
    build.param(f"{op}.weight", (build["h"],))
    if residual is None:
        build.tape.reads((x,))
        return out_like("rms_norm", x), x
    build.tape.moves("fused_add_rms_norm", x.dtype, read_bytes(x) * 4)
    return x, residual


def _attention(build: Build, x: Tensor) -> Tensor:
    b, s, a, k, d = (build[letter] for letter in "bsakd")
    config = build.config
    build.at("qkv_proj", "attention")
    widths = (a * d, k * d, k * d)
    total = widths[0] + widths[1] + widths[2]
    qkv = build.linear(x, "qkv_proj", (build["h"], total), config.attention_bias)
    query, key, value = (
        reshape(part, (b, s, heads, d))
        for part, heads in zip(split(qkv, widths), (a, k, k), strict=True)
    )
    if config.qk_norm == "head":
        query, key = _head_norm(build, query, "q_norm"), _head_norm(build, key, "k_norm")
    build.at("rope", "attention")
    build.tape.in_place("rotary_embedding", query, key, key)
    query, key, value = (permute(part, HEADS_FIRST) for part in (query, key, value))
    key, value = cached(build, key, value)
    build.at("attention", "attention")
    ran = attention_ran("flash", "forward", query, key, value)
    build.tape.ran(ran)
    build.tape.covered("attention_output")
    out = build.tape.empty("attention_output", (b, s, a * d), query.dtype)
    del qkv, query, key, value
    build.at("o_proj", "attention")
    return build.linear(out, "o_proj", (a * d, build["h"]), config.attention_output_bias)


def _head_norm(build: Build, x: Tensor, op: str) -> Tensor:
    build.at(op, "norm")
    build.param(f"{op}.weight", (build["d"],))
    build.tape.reads((x,))
    return build.tape.empty("rms_norm", x.shape, x.dtype)


def _mlp(build: Build, x: Tensor) -> Tensor:
    f, bias = build["f"], build.config.mlp_bias
    build.at("gate_up_proj", "mlp")
    both = build.linear(x, "gate_up_proj", (build["h"], f * 2), bias)
    build.at("activation", "mlp")
    build.tape.reads((both,))
    out = build.tape.empty("silu_and_mul", (*both.shape[:-1], f), both.dtype)
    del both
    build.at("down_proj", "mlp")
    return build.linear(out, "down_proj", (f, build["h"]), bias)


def check_vllm(config: ModelConfig) -> None:
    """Raise where a model is not one of those described here: gated layers after LLaMA's."""
    needed = {
        "rotary positions": config.position_embedding == "rope",
        "RMSNorm before attention and MLP": config.norm_type == "rmsnorm"
        and config.norm_placement == "pre",
        "a gated MLP": config.gated_mlp,
        "no soft caps": config.attn_logit_softcapping is None,
        "no attention sinks": not config.attention_sinks,
        "no latent attention": config.mla is None,
        "branches in sequence": not config.parallel_block and not config.embedding_scale,
    }
    for what, given in needed.items():
        if not given:
            raise NotInThisVersionError(
                f"engine: vllm with {config.name}: it is described for models with {what}; "
                "valid: --engine transformers"
            )
