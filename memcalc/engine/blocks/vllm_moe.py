"""vLLM's mixture MLP: one kernel for all experts' products, on two buffers that it makes for itself.

Symbols: T tokens, E experts of which e are here, t chosen a token, m width of an expert on this rank, R
rows this rank's experts have. Shared experts run first. The first buffer holds act's input, then the rows
of the second product: T t rows of max(2m, h); the other T t rows of m. Both are for at most 32768 tokens
at a time, whether or not their experts are here. The sum over a token's experts goes into the tokens
themselves. With ranks that have sequences of their own, tokens and logits are gathered first and results
scattered (the allgather-reducescatter way of exchanging; DeepEP's and others need less).
Source: vllm-project/vllm, vllm/model_executor/layers/fused_moe/fused_moe.py (fused_experts_impl), layer.py;
models/mixtral.py, qwen2_moe.py, deepseek_v2.py, gpt_oss.py. Checked by: unit/test_serving_vllm.py.
"""

from __future__ import annotations

from typing import Final

from memcalc.engine.aten.pointwise import add_in_place, mul, scale, to
from memcalc.engine.aten.routing import sigmoid
from memcalc.engine.aten.shape import reshape
from memcalc.engine.blocks.vllm_parts import activated, summed
from memcalc.engine.build import Build
from memcalc.engine.kernel_log import grouped
from memcalc.engine.sizes import ONE
from memcalc.engine.tensors import Tensor
from memcalc.inputs.model import MoeConfig

#: Tokens of one call of the experts' kernel: VLLM_FUSED_MOE_CHUNK_SIZE.
CHUNK: Final = 32768
#: Rows that each expert's share is padded to, at most.
_BLOCK: Final = 64


def vllm_moe(build: Build, x: Tensor) -> Tensor:
    """The mixture MLP of x (b, s, h), shared experts included: (b, s, h), summed over ranks."""
    config = build.config.moe
    assert config is not None
    tokens = reshape(x, (build["b"] * build["s"], build["h"]))
    shared = _shared(build, tokens) if config.shared_intermediate_size else None
    build.at("router", "mlp")
    logits = build.linear(tokens, "router", (build["h"], build["E"]), config.router_bias)
    spread = "T_e" in build.dims
    if spread:  # every rank's tokens come to every rank
        tape, rows = build.tape, build["T_e"]
        gathered = tape.empty("all_gather", (rows, build["h"]), tokens.dtype)
        logits = tape.empty("all_gather", (rows, build["E"]), logits.dtype)
    out = _experts(build, config, gathered if spread else tokens, logits)
    del logits
    if spread:
        del gathered
        build.at("combine", "mlp")
        out = build.tape.empty("reduce_scatter", tokens.shape, tokens.dtype)
    if config.fp32_router:  # DeepSeek's routed_scaling_factor
        build.at("combine", "mlp")
        out = scale(out)
    if shared is not None:
        build.at("combine", "mlp")
        out = add_in_place(out, shared)
    return reshape(summed(build, out), x.shape)


def _shared(build: Build, tokens: Tensor) -> Tensor:
    """The shared expert, gate and up in one product; Qwen2-MoE's is weighted by a gate of its own."""
    h, n, config = build["h"], build["n"], build.config
    assert config.moe is not None
    build.at("shared_gate_up_proj", "mlp")
    both = build.linear(tokens, "shared_gate_up_proj", (h, n * 2), config.mlp_bias)
    out = activated(build, both, "shared_activation", n)
    del both
    build.at("shared_down_proj", "mlp")
    out = build.linear(out, "shared_down_proj", (n, h), config.mlp_bias)
    if not config.moe.shared_expert_gate:
        return out
    build.at("shared_expert_gate", "mlp")
    gate = sigmoid(build.linear(tokens, "shared_expert_gate", (h, ONE), False))
    return mul(gate, out)


def _experts(build: Build, config: MoeConfig, tokens: Tensor, logits: Tensor) -> Tensor:
    """Routed experts: their sum, in place of the tokens."""
    tape, dtype = build.tape, tokens.dtype
    e, h, m, rows, t = (build[letter] for letter in ("e", "h", "m", "R", "t"))
    held, every = build["R_c"], tokens.shape[0] * t
    wide = to(logits, "fp32")
    tape.loads(wide)
    _weights = tape.empty("topk_softmax", (tokens.shape[0], t), "fp32")
    _chosen = tape.empty("topk_softmax", (tokens.shape[0], t), "int32")
    _places = tape.empty("topk_softmax", (tokens.shape[0], t), "int32")
    del wide
    build.at("dispatch", "mlp")
    first = tape.empty("empty", (held, build["w_m"]), dtype)
    second = tape.empty("empty", (held, m), dtype)
    tape.loads(_chosen)
    _order = tape.empty("moe_align_block_size", (held + build["E"] * (_BLOCK - 1),), "int32")
    for op, (o, i) in (("expert_gate_up", (m * 2, h)), ("expert_down", (h, m))):
        build.at(op, "mlp")
        build.param(f"{op}.weight", (e, o, i))
        if config.expert_bias:
            build.param(f"{op}.bias", (e, o))
        tape.ran(grouped("fused_moe", "forward", (e, rows, o, i), dtype))
        if op == "expert_gate_up":
            build.at("expert_activation", "mlp")
            tape.moves("silu_and_mul", dtype, rows * m * 6)
    del second
    build.at("combine", "mlp")
    tape.moves("moe_sum", dtype, (every + tokens.shape[0]) * h * 2)
    del first
    return tokens
