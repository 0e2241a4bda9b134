"""vLLM's decoder: fused projections, norms that add the residual in place, keys and values in a pool.

Shapes: x and residual (b, s, h), all positions of a batch one after the other. In layers after LLaMA's
the residual stream goes from layer to layer beside x, and norms add it; layer norms, norms after the sum
(OLMo-2, post-norm) and branches side by side (GPT-J, NeoX, Falcon) add by operators of their own.
A pipeline's stage that is not the first receives x and the residual in buffers that are there before;
one that is not the last ends with both. Logits are of the last position of every sequence, or of all new
ones where drafted tokens are verified.
Source: vllm-project/vllm, vllm/model_executor/models/llama.py, gemma2.py, olmo2.py, gpt2.py, opt.py,
bloom.py, gpt_neox.py, gpt_j.py, falcon.py. Checked by: unit/test_serving_vllm.py (allocations and kernels
of layers, written out by hand).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from memcalc.engine.aten.fused import embedding
from memcalc.engine.aten.pointwise import add, constant
from memcalc.engine.aten.shape import narrow
from memcalc.engine.blocks.loss import head
from memcalc.engine.blocks.vllm_attention import vllm_attention
from memcalc.engine.blocks.vllm_mla import vllm_mla
from memcalc.engine.blocks.vllm_moe import vllm_moe
from memcalc.engine.blocks.vllm_parts import activated, added_norm, normed, plus, summed
from memcalc.engine.build import Build
from memcalc.engine.kernels import BlockKind
from memcalc.engine.sizes import ONE
from memcalc.engine.tensors import Tensor
from memcalc.errors import NotInThisVersionError
from memcalc.inputs.model import ModelConfig

#: Families that vLLM has no model for.
_ABSENT: Final = ("openai-gpt",)
Stream = tuple[Tensor, Tensor | None]


def vllm_model(build: Build, given: Tensor, layers: list[BlockKind]) -> Tensor:
    """Logits of the chosen positions from token ids; of an inner stage what it receives and sends."""
    x, residual = _begun(build, given)
    layer = _layer_of(build.config)
    for index, kind in enumerate(layers):
        build.tape.mark("block", index)
        build.tape.block, build.kind = index, kind
        x, residual = layer(build, x, residual)
        build.tape.block = -1
    build.tape.mark("blocks end", -1)
    if not build.ends[1]:
        build.held = residual  # sent beside x
        return x
    if build.config.final_norm:
        x = added_norm(build, x, residual, "final_norm")[0]
    del residual
    if build["w"] is not build["h"]:
        build.at("project_out", "head")
        x = build.linear(x, "project_out", (build["h"], build["w"]), False)
    build.at("lm_head", "head")
    if build.config.tie_word_embeddings and not build.ends[0]:  # a copy of the first stage's
        build.param("embedding.weight", (build["V"], build["w"]))
    return head(build, _chosen_rows(build, x))


def _begun(build: Build, given: Tensor) -> Stream:
    """The stream before the first block: embedded token ids, or what another stage sent."""
    config = build.config
    if not build.ends[0]:
        shape = (build["b"], build["s"], build["h"])
        carries = _layer_of(config) is _layer
        dtype = build.kernels.compute_dtype
        return given, build.tape.external(shape, dtype) if carries else None
    build.at("embedding", "embedding")
    x = embedding(build.param("embedding.weight", (build["V"], build["w"])), given)
    x = summed(build, x)
    if config.embedding_scale:
        build.tape.in_place("mul_", x)
    if build["w"] is not build["h"]:
        build.at("project_in", "embedding")
        x = build.linear(x, "project_in", (build["w"], build["h"]), False)
    if config.position_embedding == "learned":
        build.at("position_embedding", "embedding")
        table = build.param("position_embedding.weight", (build["P"], build["h"]))
        x = add(x, embedding(table, constant(build.tape, "arange", (build["s"],), "int64")))
    return (normed(build, x, "embedding_norm") if config.embedding_norm else x), None


def _chosen_rows(build: Build, x: Tensor) -> Tensor:
    """The rows whose logits are asked for, gathered into a tensor of their own."""
    every = build.cache is not None and build.cache.kind.every
    last = x if every else narrow(x, ONE, 1)
    build.tape.loads(last)
    return build.tape.empty("index_select", last.shape, last.dtype)


def _layer(build: Build, x: Tensor, residual: Tensor | None) -> Stream:
    """LLaMA's: norms before the branches add the residual; Gemma-2 has norms after them too."""
    after = build.config.norm_placement == "sandwich"
    x, residual = added_norm(build, x, residual, "attn_norm")
    x = _attention(build, x)
    if after:
        x = normed(build, x, "post_attn_norm")
    x, residual = added_norm(build, x, residual, "mlp_norm")
    x = _mlp(build, x)
    return (normed(build, x, "post_mlp_norm") if after else x), residual


def _summing(build: Build, x: Tensor, residual: Tensor | None) -> Stream:
    """Sums by operators of their own: layer norms, and norms after a branch or after the sum."""
    place = build.config.norm_placement
    for branch, what, name in (
        (_attention, "attn", "attn_residual"),
        (_mlp, "mlp", "mlp_residual"),
    ):
        out = branch(build, normed(build, x, f"{what}_norm") if place == "pre" else x)
        if place == "post":
            out = normed(build, out, f"post_{what}_norm")
        x = plus(build, x, out, name)
        if place == "post-residual":
            x = normed(build, x, f"{what}_norm")
    return x, None


def _side_by_side(build: Build, x: Tensor, residual: Tensor | None) -> Stream:
    """x + attention(norm(x)) + mlp(norm'(x))."""
    before = normed(build, x, "attn_norm")
    attended = _attention(build, before)
    if build.config.parallel_norms == 2:
        before = normed(build, x, "mlp_norm")
    fed = _mlp(build, before)
    return plus(build, plus(build, x, attended, "attn_residual"), fed, "mlp_residual"), None


def _layer_of(config: ModelConfig) -> Callable[[Build, Tensor, Tensor | None], Stream]:
    if config.parallel_block:
        return _side_by_side
    fused = config.norm_type == "rmsnorm" and config.norm_placement in ("pre", "sandwich")
    return _layer if fused else _summing


def _attention(build: Build, x: Tensor) -> Tensor:
    return vllm_mla(build, x) if build.config.mla else vllm_attention(build, x)


def _mlp(build: Build, x: Tensor) -> Tensor:
    """The MLP of x (b, s, h), gate and up in one product where there is a gate."""
    if build.kind.sparse:
        return vllm_moe(build, x)
    f, bias = build["f"], build.config.mlp_bias
    name = "gate_up_proj" if build.config.gated_mlp else "up_proj"
    build.at(name, "mlp")
    x = build.linear(x, name, (build["h"], f * 2 if build.config.gated_mlp else f), bias)
    x = activated(build, x, "activation", f)
    build.at("down_proj", "mlp")
    return summed(build, build.linear(x, "down_proj", (f, build["h"]), bias))


def check_vllm(config: ModelConfig) -> None:
    """Raise where vLLM has no such model."""
    if config.model_type in _ABSENT or config.position_embedding == "relative":
        raise NotInThisVersionError(
            f"engine: vllm with {config.name}: vLLM has no model of type {config.model_type}; valid: "
            "--engine transformers"
        )
