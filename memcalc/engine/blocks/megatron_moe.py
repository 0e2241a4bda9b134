"""The mixture of experts as Megatron-Core runs it: router, all-to-all dispatch, grouped products.

Rows go through copies: permuted by expert, sent to the experts' ranks, gathered over an expert's
tensor-parallel ranks, sorted by local expert; and back. The first two live until the layer returns, as
they have names in its forward. The experts keep their inputs, the activation its own. Probabilities
weigh the activation. Shared experts are a dense MLP beside, run between exchange and gather.
Letters: E experts, e of them on this rank, t a token, m width of one on this rank, n shared width, T
positions of this rank's stream, R_s rows it sends (T t; C E when padded to a capacity), R_p rows it
receives (as many when balanced; imbalance multiplies them), R those of all ranks that share an expert.
Source: Megatron-Core 0.14, transformer/moe/{moe_layer,token_dispatcher,experts,shared_experts}.py:
alltoall dispatcher, with --moe-grouped-gemm and --moe-permute-fusion as its recipes set them.
Not modelled: DeepEP and HybridEP, whose buffers are the driver's.
Checked by: unit/test_megatron_moe.py, unit/test_megatron_recompute.py.
"""

from __future__ import annotations

from memcalc.engine.aten.collective import all_gather, all_to_all, reduce_scatter
from memcalc.engine.aten.pointwise import add, mul, to
from memcalc.engine.aten.routing import sigmoid
from memcalc.engine.aten.shape import reshape
from memcalc.engine.aten.te_linear import grouped_linear, linear
from memcalc.engine.aten.te_tokens import (
    fused_activation,
    gate,
    laid_anew,
    permute,
    sort_chunks,
    unpermute,
)
from memcalc.engine.blocks.megatron_attention import WithBias
from memcalc.engine.blocks.megatron_parts import (
    column,
    letter,
    normed_stream,
    options,
    parameters,
    recomputes,
    row,
)
from memcalc.engine.blocks.megatron_router import routed
from memcalc.engine.build import Build
from memcalc.engine.checkpoint import checkpoint_reentrant
from memcalc.engine.checkpoint_discard import Discarded
from memcalc.engine.ledger import note_collective
from memcalc.engine.sizes import ONE, product
from memcalc.engine.tensors import Tensor, bytes_of


def mixture(build: Build, x: Tensor) -> WithBias:
    """The mixture MLP of the stream x (s_t, b, h), its norm before it; no bias."""
    normed, freed = normed_stream(build, x, "mlp_norm")

    def layer(hidden: Tensor) -> Tensor:
        return _layer(build, hidden)

    out = checkpoint_reentrant(layer, normed) if recomputes(build, "moe") else layer(normed)
    if freed:
        freed.discard(out)
    return out, None


def _layer(build: Build, x: Tensor) -> Tensor:
    """Route, dispatch, compute, combine; names live as long as in MoELayer.forward."""
    tokens = reshape(x, (product(x.shape[:-1]), x.shape[-1]))
    probs, chosen = routed(build, tokens)
    build.at("dispatch", "mlp")
    sent, chances, places = permute(tokens, probs, letter(build, "R_s", "R"))
    del probs, chosen  # the dispatcher's until the next micro-batch: counted with the buffers
    received, weights = _exchanged(build, sent, chances)
    del chances
    shared = _shared_or_none(build, x)
    rows = _experts(build, received, weights)
    build.at("combine", "mlp")
    back = rows
    if options(build).experts_apart:
        back = all_to_all(rows, (letter(build, "R_s", "R"), build["h"]))
    out = unpermute(back, places, tokens.shape[0])
    del back
    out = reshape(out, x.shape)
    return out if shared is None else add(out, shared)


def _exchanged(build: Build, rows: Tensor, chances: Tensor) -> tuple[Tensor, Tensor]:
    """Rows on the ranks of their experts (R_p, h), and their probabilities (R_p)."""
    if not options(build).experts_apart:
        return rows, chances
    before = letter(build, "R_p", "R")
    counts = bytes_of((build["E"],), "int64")  # how many rows each rank has for each expert
    note_collective(build.tape, "all_gather", counts, "ep")
    return all_to_all(rows, (before, build["h"])), all_to_all(chances, (before,))


def _experts(build: Build, rows: Tensor, chances: Tensor) -> Tensor:
    """Rows (R_p, h) gathered over an expert's ranks, sorted by expert, through the experts, and back."""
    chosen, h = options(build), build["h"]
    if chosen.experts_split:
        rows = all_gather(rows, (build["R"], h), "etp")
        chances = all_gather(chances, (build["R"],), "etp")
    if _sorts(build):
        rows, chances = _by_chunk(build, rows, chances)
    made = _products(build, rows, chances)
    build.at("combine", "mlp")
    out = made
    if _sorts(build):
        (out,) = _by_chunk(build, made)
    if not chosen.experts_split:
        return out
    received = (letter(build, "R_p", "R"), h)
    # in the dtype of the probabilities
    out = to(reduce_scatter(to(out, chances.dtype), received, "etp"), made.dtype)
    return out  # noqa: RET504  # what it is made of lives until it is there


def _sorts(build: Build) -> bool:
    """Whether rows are laid out anew by expert; padded ones of a single rank lie so already."""
    chosen = options(build)
    if chosen.capacity == "pad" and not (chosen.experts_apart or chosen.experts_split):
        return False
    return chosen.several_experts


def _by_chunk(build: Build, *parts: Tensor) -> tuple[Tensor, ...]:
    """Chunks of rows, and what travels beside them, in another order; of one length when padded."""
    if options(build).capacity == "pad":
        return tuple(laid_anew(one) for one in parts)
    return sort_chunks(*parts)


def _products(build: Build, rows: Tensor, chances: Tensor) -> Tensor:
    """The experts' two products and the activation between, weighed by probabilities: (R, h)."""
    e, h, m = letter(build, "e", "E"), build["h"], build["m"]
    in_place, gated = options(build).adds_in_place, build.config.gated_mlp
    chances = reshape(chances, (rows.shape[0], ONE))

    def activated(inner: Tensor, chances: Tensor) -> tuple[Tensor]:
        build.at("expert_activation", "mlp")
        return (fused_activation(inner, chances, gated=gated),)

    build.at("expert_gate_up", "mlp")
    weight = build.param("expert_gate_up.weight", (e, m * 2 if gated else m, h))
    inner = grouped_linear(rows, weight, in_place)
    freed = None
    if recomputes(build, "moe_act"):
        freed = Discarded(activated, inner, chances)
        (inner,) = freed.outputs
    else:
        (inner,) = activated(inner, chances)
    build.at("expert_down", "mlp")
    weight = build.param("expert_down.weight", (e, h, m))
    out = grouped_linear(inner, weight, in_place)
    if freed:
        freed.discard(out)
    return out


def _shared_or_none(build: Build, x: Tensor) -> Tensor | None:
    config = build.config.moe
    assert config is not None
    if not config.shared_intermediate_size:
        return None

    def shared(hidden: Tensor) -> Tensor:
        return _shared(build, hidden, config.shared_expert_gate)

    return checkpoint_reentrant(shared, x) if recomputes(build, "shared_experts") else shared(x)


def _shared(build: Build, x: Tensor, has_gate: bool) -> Tensor:
    """The shared experts: an MLP of width n of the same normed stream, gated by a sigmoid or not."""
    n, h = build["n"], build["h"]
    gated = build.config.gated_mlp
    build.at("shared_up_proj", "mlp")
    width = n * 2 if gated else n
    inner = linear(x, parameters(build, "shared_up_proj", (width, h), False), column(build))
    build.at("shared_activation", "mlp")
    inner = fused_activation(inner, gated=gated)
    build.at("shared_down_proj", "mlp")
    out = linear(inner, parameters(build, "shared_down_proj", (h, n), False), row(build))
    if not has_gate:
        return out
    build.at("shared_expert_gate", "mlp")
    weight = build.param("shared_expert_gate.weight", (ONE, h))
    return mul(out, sigmoid(gate(x, weight)))
