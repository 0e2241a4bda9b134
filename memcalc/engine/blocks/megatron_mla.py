"""Latent attention as Megatron-Core runs it: norm, two narrow projections, two wide ones, the kernel.

The projections to the latents are not divided: every tp rank has them in full and its own positions of
the stream; the wide ones are column-parallel with the latent's norm inside. Rotary embedding is one
kernel each: in place for queries, into new keys and values (YaRN with rope fusion).
Under mla_up_proj, queries, keys and values are freed after the core and made again from the latents.
Letters: q_r, c latents' widths, d = d_n + d_r head width of q and k, d_v of v.
Source: Megatron-Core 0.14, transformer/multi_latent_attention.py, fusions/fused_mla_yarn_rope_apply.py.
Checked by: unit/test_megatron_layers.py, unit/test_megatron_recompute.py.
"""

from __future__ import annotations

from typing import Any

from memcalc.engine.aten.collective import all_gather
from memcalc.engine.aten.shape import contiguous, reshape, split
from memcalc.engine.aten.te_linear import Weights, linear, norm_linear
from memcalc.engine.autograd import Grads, Node, node_for
from memcalc.engine.blocks.megatron_attention import WithBias, core, output
from memcalc.engine.blocks.megatron_parts import (
    all_rows,
    alone,
    column,
    norm_parameters,
    normed_stream,
    options,
    parameters,
    recomputes,
)
from memcalc.engine.build import Build
from memcalc.engine.checkpoint_discard import Discarded
from memcalc.engine.sizes import Size
from memcalc.engine.tensors import Tensor


def latent_attention(build: Build, x: Tensor) -> WithBias:
    """Attention of the stream x: the output projection's result, no bias."""
    normed, freed = normed_stream(build, x, "attn_norm")
    out, bias = output(build, _attended(build, normed))
    if freed:
        freed.discard(out)
    return out, bias


def _attended(build: Build, x: Tensor) -> Tensor:
    """Heads of the attention core; queries, keys and values may be freed after it."""

    def up(*latents: Tensor) -> tuple[Tensor, ...]:
        return _queries_keys_values(build, *latents)

    if not recomputes(build, "mla_up_proj"):
        return core(build, *up(*_latents(build, x)))
    freed = Discarded(up, *_latents(build, x))
    out = core(build, *freed.outputs)
    freed.discard(out)
    return out


def _latents(build: Build, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Latents of queries and of keys and values, and the columns of keys that are turned."""
    query_latent = _query_latent(build, x)
    build.at("kv_a_proj", "attention")
    width = build["c"] + build["d_r"]
    both = linear(x, parameters(build, "kv_a_proj", (width, build["h"]), False), alone(build))
    latent, turned = split(both, (build["c"], build["d_r"]))
    del both
    if options(build).sequence:
        turned = all_gather(turned, (*all_rows(build), build["d_r"]))
    return query_latent, latent, turned


def _queries_keys_values(
    build: Build, query_latent: Tensor, latent: Tensor, turned: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    a, d = build["a"], build["d"]
    query = _expanded(build, query_latent, "q_b_proj", (a * d, "q_a_norm", "q_r"))
    query = reshape(query, (*all_rows(build), a, d))
    inner = build["d_n"] + build["d_v"]
    pairs = _expanded(build, contiguous(latent), "kv_b_proj", (a * inner, "kv_a_norm", "c"))
    pairs = reshape(pairs, (*all_rows(build), a, inner))
    build.at("rope", "attention")
    query = _rotated_in_place(query)
    key, value = _keys_and_values(build, pairs, turned)
    return query, key, value


def _query_latent(build: Build, x: Tensor) -> Tensor:
    """The query's latent, or the stream where queries have none (V2-Lite)."""
    mla = build.config.mla
    assert mla is not None
    if mla.q_lora_rank is None:
        return x
    build.at("q_a_proj", "attention")
    weight = parameters(build, "q_a_proj", (build["q_r"], build["h"]), False)
    return linear(x, weight, alone(build))


def _expanded(build: Build, x: Tensor, op: str, to: tuple[Size, str, str]) -> Tensor:
    """A latent, normed, to all heads' columns; a query without latent by one linear."""
    width, norm_name, rank = to
    mla = build.config.mla
    assert mla is not None
    if op == "q_b_proj" and mla.q_lora_rank is None:
        build.at("q_proj", "attention")
        return linear(x, parameters(build, "q_proj", (width, build["h"]), False), column(build))
    build.at(op, "attention")
    weight = parameters(build, op, (width, build[rank]), False)
    return norm_linear(
        x, Weights(weight, norm_parameters(build, norm_name, build[rank])), column(build)
    )  # fmt: skip


def _rotated_in_place(x: Tensor) -> Tensor:
    """Queries turned in place, their gradient likewise."""
    node = node_for(_in_place, x)
    x.tape.in_place("fused_mla_rope_q", x)
    out = x.view_as(x.shape, x.order, None)
    return node.output(out) if node else out


def _in_place(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    gradient.tape.in_place("fused_mla_rope_q_bwd", gradient)
    return [gradient]


def _keys_and_values(build: Build, pairs: Tensor, turned: Tensor) -> tuple[Tensor, Tensor]:
    """Keys (s, b, a, d) and values (s, b, a, d_v) out of the pairs and the shared turned columns."""
    node = node_for(_keys_backward, pairs, turned)
    shape = (*pairs.shape[:2], build["a"])
    key = pairs.tape.empty("fused_mla_rope_kv", (*shape, build["d"]), pairs.dtype)
    value = pairs.tape.empty("fused_mla_rope_kv", (*shape, build["d_v"]), pairs.dtype)
    if node is None:
        return key, value
    return node.output(key), node.output(value)


def _keys_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    tape = next(one for one in grads if one is not None).tape
    return [tape.empty("fused_mla_rope_kv_bwd", shape, dtype) for shape, dtype in node.inputs]
