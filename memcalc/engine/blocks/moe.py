"""The mixture MLP: router, dispatch of token rows to experts, grouped products, combination.

Symbols: T = b s tokens, E experts of width m, t chosen a token, R routed rows, n shared width.
Gate and up of all experts are one weight (E, 2m, h), down is (E, h, m). No row is dropped.

Stack hf follows transformers' grouped_mm experts: R = T t, rows go back to token order and are summed
over the t experts. The plain decoder adds each row to its token in place (index_add), with R rows on
this rank, so that an imbalance between ranks has a dim of its own.
Source: transformers 5.23, integrations/moe.py and the families' modeling files; DeepSeek-V3
(arXiv:2412.19437), sec. 2.1.2.
Checked by: oracle/test_hf_moe.py, oracle/test_sparse_blocks.py.
"""

from __future__ import annotations

from memcalc.engine.aten.pointwise import (
    add,
    add_in_place,
    constant,
    mul,
    scale,
    shift,
    to,
)
from memcalc.engine.aten.routing import (
    clamp,
    grouped_mm,
    index_add,
    sigmoid,
    sort_ids,
    sum_dim,
    take_rows,
)
from memcalc.engine.aten.shape import every_second, reshape, split, unsqueeze
from memcalc.engine.blocks.expert_dispatch import (
    combine,
    dispatch,
    is_spread,
    own_experts,
    sent_rows,
)
from memcalc.engine.blocks.mlp import activate
from memcalc.engine.blocks.router import route
from memcalc.engine.build import Build
from memcalc.engine.sizes import ONE, Size
from memcalc.engine.tensors import Shape, Tensor
from memcalc.inputs.model import MoeConfig


def moe(build: Build, x: Tensor) -> tuple[Tensor, Tensor]:
    """The mixture MLP of x (b, s, h), shared experts included, and the experts' weights (T, t)."""
    config = build.config.moe
    assert config is not None
    _declare(build, config)
    tokens = _flat(build, x)
    if config.shared_expert_gate:
        out, weights = _gated_shared(build, tokens)
        return reshape(out, x.shape), weights
    _logits, weights, chosen = route(build, tokens)
    if config.fp32_router:  # DeepSeek's router makes a view of its own
        tokens = _flat(build, x)
    out = reshape(experts(build, tokens, chosen, weights), x.shape)
    if not config.shared_intermediate_size:
        return out, weights
    return _joined(build, out, _shared(build, x)), weights


def _declare(build: Build, config: MoeConfig) -> None:
    """Router and experts in the order their modules are made, which a looping optimizer follows."""
    e, h, m = own_experts(build), build["h"], build["m"]
    router: list[tuple[str, Shape]] = [("router.weight", (build["E"], h))]
    router += [("router.bias", (build["E"],))] if config.router_bias else []
    stacked: list[tuple[str, Shape]] = []
    for op, o, i in (("expert_gate_up", m * 2, h), ("expert_down", h, m)):
        stacked.append((f"{op}.weight", (e, o, i)))
        stacked += [(f"{op}.bias", (e, o))] if config.expert_bias else []
    first = build.kernels.traits.experts_first
    for name, shape in [*stacked, *router] if first else [*router, *stacked]:
        build.declare(name, shape)


def _flat(build: Build, x: Tensor) -> Tensor:
    return reshape(x, (build["b"] * build["s"], build["h"]))


def _gated_shared(build: Build, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Qwen2-MoE: the shared expert runs first and is weighted by a sigmoid gate of its own."""
    shared = _shared(build, tokens)
    _logits, weights, chosen = route(build, tokens)
    out = experts(build, tokens, chosen, weights)
    build.at("shared_expert_gate", "mlp")
    shared = mul(
        sigmoid(build.linear(tokens, "shared_expert_gate", (build["h"], ONE), False)), shared
    )
    return _joined(build, out, shared), weights


def _joined(build: Build, routed: Tensor, shared: Tensor) -> Tensor:
    build.at("combine", "mlp")
    return add(routed, shared)


def _shared(build: Build, x: Tensor) -> Tensor:
    """The shared expert: a gated MLP of width n, as one expression."""
    return _shared_down(build, _shared_mul(build, _shared_gate(build, x), _shared_up(build, x)))


def _shared_gate(build: Build, x: Tensor) -> Tensor:
    build.at("shared_gate_proj", "mlp")
    features = (build["h"], build["n"])
    out = build.linear(x, "shared_gate_proj", features, build.config.mlp_bias)
    build.at("shared_activation", "mlp")
    return activate(out, build.config.hidden_act)


def _shared_up(build: Build, x: Tensor) -> Tensor:
    build.at("shared_up_proj", "mlp")
    return build.linear(x, "shared_up_proj", (build["h"], build["n"]), build.config.mlp_bias)


def _shared_mul(build: Build, gate: Tensor, up: Tensor) -> Tensor:
    build.at("shared_gate_mul", "mlp")
    return mul(gate, up)


def _shared_down(build: Build, x: Tensor) -> Tensor:
    build.at("shared_down_proj", "mlp")
    return build.linear(x, "shared_down_proj", (build["n"], build["h"]), build.config.mlp_bias)


def experts(build: Build, tokens: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """The routed experts' weighted sum for each token: tokens (T, h), chosen and weights (T, t).

    What stays alive until the end is what transformers' function has names for.
    """
    build.at("dispatch", "mlp")
    is_hf = build.kernels.hf
    rows = weights.numel if is_hf else sent_rows(build)
    if not is_hf:
        tokens = to(tokens, build.kernels.compute_dtype)
        weights = to(weights, tokens.dtype)
    ids, perm = sort_ids(chosen, rows)
    selected, token_of = _selected(build, tokens, rows)
    row_weights = take_rows(reshape(weights, (weights.numel,)), perm)
    _as_int, counts = _counts(build, rows)
    if is_spread(build):
        selected, counts, order = dispatch(build, selected, counts)
    offsets = constant(build.tape, "cumsum", (own_experts(build),), "int32")
    h, m = build["h"], build["m"]
    bias = _bias_rows(build, "expert_gate_up", m * 2, ids)
    out = _expert_linear(build, selected, (h, m * 2), offsets, bias)
    out = _gated(build, out)
    bias = _bias_rows(build, "expert_down", h, ids)
    out = _expert_linear(build, out, (m, h), offsets, bias)
    if is_spread(build):
        out = combine(build, out, order)
    build.at("combine", "mlp")
    weighted = mul(out, unsqueeze(row_weights, 1))
    if token_of is not None:
        zeros = constant(build.tape, "zeros", tokens.shape, tokens.dtype)
        return index_add(zeros, token_of, weighted)
    back = _inverse(build, rows)
    weighted = take_rows(weighted, back)
    total = sum_dim(reshape(weighted, (*chosen.shape, h)), 1, False)
    return to(total, tokens.dtype)


def _selected(build: Build, tokens: Tensor, rows: Size) -> tuple[Tensor, Tensor | None]:
    """Each routed row's token (R, h), and its index where the sum over experts needs it again."""
    token_of = constant(build.tape, "floor_divide", (rows,), "int64")
    return take_rows(tokens, token_of), None if build.kernels.hf else token_of


def _counts(build: Build, rows: Size) -> tuple[Tensor, Tensor]:
    """Ids in int32 (rows), and how many rows each of all experts has (E) in int32."""
    as_int = constant(build.tape, "_to_copy", (rows,), "int32")
    return as_int, constant(build.tape, "histc", (build["E"],), "int32")


def _inverse(build: Build, rows: Size) -> Tensor:
    """The permutation back to token order, filled in place from a temporary arange."""
    build.tape.covered("empty_like")
    inverse = build.tape.empty("empty_like", (rows,), "int64")
    build.tape.in_place("index_put_", constant(build.tape, "arange", (rows,), "int64"))
    return inverse


def _bias_rows(build: Build, op: str, width: Size, ids: Tensor) -> Tensor | None:
    """Enter the op; each row's bias (R, width), where experts have biases."""
    build.at(op, "mlp")
    moe = build.config.moe
    assert moe is not None
    if not moe.expert_bias:
        return None
    return take_rows(build.param(f"{op}.bias", (build["E"], width)), ids)


def _expert_linear(
    build: Build, x: Tensor, features: tuple[Size, Size], offsets: Tensor, bias: Tensor | None
) -> Tensor:
    """Each row of x (R, i) times its expert's weight (E, o, i), plus its bias: (R, o)."""
    i, o = features
    weight = build.param(f"{build.tape.op}.weight", (own_experts(build), o, i))
    if not build.kernels.hf:
        weight = build.cast_param(weight)
    out = grouped_mm(to(x, weight.dtype), weight, offsets)
    return out if bias is None else add_in_place(out, bias)


def _gated(build: Build, gate_up: Tensor) -> Tensor:
    """act(gate) * up; gpt-oss clamps both and computes (up + 1) gate sigmoid(1.702 gate)."""
    build.at("expert_activation", "mlp")
    m = build["m"]
    moe = build.config.moe
    assert moe is not None
    if moe.scoring != "softmax-of-chosen":
        gate, up = split(gate_up, (m, m))
        return mul(activate(gate, build.config.hidden_act), up)
    gate, up = every_second(gate_up, m), every_second(gate_up, m)
    gate = clamp(gate, False)
    up = clamp(up, True)
    glu = mul(gate, sigmoid(scale(gate)))
    return mul(shift(up), glu)
