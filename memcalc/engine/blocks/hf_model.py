"""transformers' decoder models: what runs before the blocks, the blocks, the final norm.

Names alive in `forward` of a modeling file are alive here: input embeddings, position ids, masks and
rotary tables live until the final norm has run. Shapes: b sequences, s positions, h hidden.
Source: transformers 5.23, models/*/modeling_*.py. Checked by: oracle/test_hf_families.py.
"""

from __future__ import annotations

from collections.abc import Callable

from memcalc.engine.adapters.prompt import prefixed, prompted
from memcalc.engine.aten.fused import embedding
from memcalc.engine.aten.pointwise import add, dropout, scale, to
from memcalc.engine.aten.shape import narrow
from memcalc.engine.blocks.cache import keys_read
from memcalc.engine.blocks.embedding import Context, causal_mask, with_gradient
from memcalc.engine.blocks.hf_bert import bert_embeddings
from memcalc.engine.blocks.hf_masks import alibi, falcon_alibi, masks
from memcalc.engine.blocks.hf_tables import complex_tables, half_tables
from memcalc.engine.blocks.loss import project_out
from memcalc.engine.blocks.norm import norm
from memcalc.engine.build import Build
from memcalc.engine.kernels import BlockKind
from memcalc.engine.sizes import ONE
from memcalc.engine.tensors import Tensor

RunBlock = Callable[[Build, int, BlockKind, Tensor, Context], Tensor]
#: Input of block 0, context of full and sliding blocks, whatever else stays alive.
Start = tuple[Tensor, dict[str, Context], tuple[Tensor, ...]]


def hidden_states(
    build: Build, ids: Tensor, layers: list[BlockKind], run: RunBlock, first: int = 0
) -> Tensor:
    """Model.forward: the normed hidden states (b, s, h); all else it made is gone on return.

    first: number of its first block, where another model's come before.
    """
    prefixed(build, len(layers))
    x, contexts, alive = _STARTS[build.kernels.traits.start](build, ids, layers)
    for index, kind in enumerate(layers, first):
        build.tape.mark("block", index)
        x = run(build, index, kind, x, contexts[kind.attention])
    build.tape.mark("blocks end", -1)
    if build.config.final_norm:
        x = norm(build, x, "final_norm")
    x = project_out(build, x)
    build.held = None
    return x


def _token_embedding(build: Build, ids: Tensor) -> Tensor:
    build.at("embedding", "embedding")
    x = embedding(build.param("embedding.weight", (build["V"], build["w"])), ids)
    if build.config.embedding_scale:
        x = scale(x)
    return prompted(build, with_gradient(build, x))


def _position_ids(build: Build) -> Tensor:
    """arange(s) + 0: int64."""
    build.at("position_ids", "embedding")
    start = build.tape.empty("arange", (build["s"],), "int64")
    out = build.tape.empty("add.Tensor", (build["s"],), "int64")
    del start
    return out.view_as((ONE, build["s"]), None, None)


def _rotary(build: Build) -> Context:
    """The rotary tables of models that have rotary positions."""
    if build.config.position_embedding != "rope":
        return ()
    build.at("rope_tables", "embedding")
    if build.kernels.traits.tables in ("half", "complex"):
        return (
            half_tables(build) if build.kernels.traits.tables == "half" else complex_tables(build)
        )
    return _cos_sin(build)


def _cos_sin(build: Build) -> Context:
    """cos and sin (1, s, r) in the embedding's dtype; both are scaled by a number after the fact."""
    build.at("rope_tables", "embedding")
    tape, dtype, shape = build.tape, build.kernels.param_dtype, (build["s"], build["r"])
    positions = tape.empty("_to_copy", shape[:1], "fp32")
    freqs = tape.empty("mul.Tensor", (build["s"], build["r/2"]), "fp32")
    del positions
    both = tape.empty("cat", shape, "fp32")
    cos = scale(tape.empty("cos", shape, "fp32"))
    sin = scale(tape.empty("sin", shape, "fp32"))
    wide = build.kernels.traits.tables == "fp32"
    out = (cos, sin) if wide else (to(cos, dtype), to(sin, dtype))
    del freqs, both
    return out


def _llama(build: Build, ids: Tensor, layers: list[BlockKind]) -> Start:
    x = _token_embedding(build, ids)
    if build.config.embedding_norm:
        x = norm(build, x, "embedding_norm")
    positions = _position_ids(build)
    if build.config.position_embedding == "alibi":
        by_kind = {"full": causal_mask(build)}  # Baichuan-13B
    else:
        by_kind = masks(build, _kinds_with_masks(build, layers))
    if build.config.model_type == "gemma3_text":
        tables = {kind: _rotary(build) for kind in ("full", "sliding")}
    else:
        tables = dict.fromkeys(("full", "sliding"), _rotary(build))
    contexts = {kind: (*tables[kind], positions, *by_kind[kind]) for kind in _kinds(layers)}
    return x, contexts, (x, *(t for kept in (*tables.values(), *by_kind.values()) for t in kept))


def _kinds(layers: list[BlockKind]) -> list[str]:
    return sorted({layer.attention for layer in layers})


def _kinds_with_masks(build: Build, layers: list[BlockKind]) -> list[str]:
    """Gemma makes both masks whatever its layers are; the others what a layer asks for."""
    if build.config.model_type in ("gemma2", "gemma3_text", "gpt_oss"):
        return ["full", "sliding"]
    return _kinds(layers)


def _gpt2(build: Build, ids: Tensor, layers: list[BlockKind]) -> Start:
    embeds = _token_embedding(build, ids)
    positions = _position_ids(build)
    build.at("position_embedding", "embedding")
    rows = build.param("position_embedding.weight", (build["P"], build["h"]))
    position_embeds = embedding(rows, positions)
    x = add(embeds, position_embeds)
    context = (positions, *masks(build, ["full"])["full"])
    return _embedding_dropout(build, x), {"full": context}, (embeds, position_embeds)


def _embedding_dropout(build: Build, x: Tensor) -> Tensor:
    if not build.config.embedding_dropout or not build.kernels.use_dropout:
        return x
    build.at("embedding_dropout", "embedding")
    return dropout(x, build.config.embedding_dropout)


def _gptj(build: Build, ids: Tensor, layers: list[BlockKind]) -> Start:
    embeds = _token_embedding(build, ids)
    positions = _position_ids(build)
    context = (positions, *masks(build, ["full"])["full"])
    return _embedding_dropout(build, embeds), {"full": context}, (embeds,)


def _gpt_neox(build: Build, ids: Tensor, layers: list[BlockKind]) -> Start:
    embeds = _token_embedding(build, ids)
    positions = _position_ids(build)
    mask = masks(build, ["full"])["full"]
    x = _embedding_dropout(build, embeds)
    return x, {"full": (*_rotary(build), positions, *mask)}, (embeds,)


def _opt(build: Build, ids: Tensor, layers: list[BlockKind]) -> Start:
    """Positions are counted from a dense mask (b, s); the embedding may be narrower than h."""
    embeds = _token_embedding(build, ids)
    build.at("position_ids", "embedding")
    tape, shape = build.tape, (build["b"], keys_read(build, "full"))
    ones = tape.empty("ones", shape, "fp32")
    counted = tape.empty("cumsum", shape, "fp32")
    shifted = scale(scale(counted), "sub.Tensor")
    positions = narrow(to(shifted, "int64"), build["s"], 1)  # those that are not in the cache
    del counted, shifted
    context = masks(build, ["full"])["full"]
    build.at("position_embedding", "embedding")
    rows = build.param("position_embedding.weight", (build["P"], build["h"]))
    position_embeds = embedding(rows, scale(positions, "add.Tensor"))
    if build["w"] is not build["h"]:
        build.at("project_in", "embedding")
        embeds = build.linear(embeds, "project_in", (build["w"], build["h"]), False)
    build.at("position_embedding", "embedding")
    x = add(embeds, position_embeds)
    return x, {"full": (positions, *context)}, (embeds, position_embeds, ones)


def _bloom(build: Build, ids: Tensor, layers: list[BlockKind]) -> Start:
    embeds = _token_embedding(build, ids)
    x = norm(build, embeds, "embedding_norm")
    bias, slopes = alibi(build)
    return x, {"full": (bias, *masks(build, ["full"])["full"])}, (embeds, slopes)


def _falcon(build: Build, ids: Tensor, layers: list[BlockKind]) -> Start:
    """The mask is always made, and ALiBi is merged into it."""
    embeds = _token_embedding(build, ids)
    if build.config.position_embedding == "alibi":
        bias, positions, ones, mask = falcon_alibi(build, _position_ids)
        context = (*_cos_sin(build), positions, bias, mask)
        return embeds, {"full": context}, (embeds, ones)
    positions = _position_ids(build)
    sdpa = build.kernels.attention == "efficient"  # given the mask, not told to be causal
    context = masks(build, ["full"], always=sdpa)["full"]
    return embeds, {"full": (*_rotary(build), positions, *context)}, (embeds,)


def _bert(build: Build, ids: Tensor, layers: list[BlockKind]) -> Start:
    x = bert_embeddings(build, ids, _token_embedding)
    return x, {"full": ()}, (x,)


_STARTS: dict[str, Callable[[Build, Tensor, list[BlockKind]], Start]] = {
    "llama": _llama, "gpt2": _gpt2, "gptj": _gptj, "gpt_neox": _gpt_neox, "opt": _opt,
    "bloom": _bloom, "falcon": _falcon, "bert": _bert,
}  # fmt: skip
