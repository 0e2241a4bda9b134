"""The dense MLP: down(act(gate(x)) * up(x)), or down(act(up(x)))."""

from __future__ import annotations

from memcalc.engine.aten.pointwise import (
    activation,
    activation_by_result,
    add,
    mul,
    scale,
    shift,
    square,
    tanh,
    to,
)
from memcalc.engine.aten.shape import split
from memcalc.engine.build import Build
from memcalc.engine.parallel.tensor.tensor_layers import whole_stream
from memcalc.engine.tensors import Tensor


def mlp(build: Build, x: Tensor) -> Tensor:
    """The MLP as one expression: each intermediate lives as long as the expression needs it."""
    x = whole_stream(build, x, "mlp_gather", "mlp")
    if build.kernels.traits.fused_gate_up and build.config.gated_mlp:
        return _fused_gate_up(build, x)
    if build.config.gated_mlp:
        return down(build, _gate_mul(build, activated(build, gate(build, x)), up(build, x)))
    return down(build, activated(build, up(build, x)))


def gate(build: Build, x: Tensor) -> Tensor:
    """The projection that the activation reads."""
    build.at("gate_proj", "mlp")
    return build.linear(x, "gate_proj", (build["h"], build["f"]), build.config.mlp_bias)


def up(build: Build, x: Tensor) -> Tensor:
    """The projection to the MLP's width."""
    build.at("up_proj", "mlp")
    return build.linear(x, "up_proj", (build["h"], build["f"]), build.config.mlp_bias)


def activated(build: Build, x: Tensor) -> Tensor:
    """The activation, as one kernel or, for GPT-2's in transformers, as separate operators."""
    build.at("activation", "mlp")
    if build.kernels.traits.gelu_by_hand and build.config.hidden_act == "gelu_new":
        return gelu_by_hand(x, build.kernels.autocast)
    return activate(x, build.config.hidden_act)


def gelu_by_hand(x: Tensor, autocast: bool = False) -> Tensor:
    """0.5 x (1 + tanh(c (x + 0.044715 x^3))), an operator at a time (NewGELUActivation).

    CUDA's autocast takes powers in fp32, so that everything after x^3 is fp32, the result too
    (aten/src/ATen/autocast_mode.h, AT_FORALL_FP32).
    """
    return mul(scale(x), shift(tanh(scale(add(x, scale(_cube(x, autocast)))))))


def _cube(x: Tensor, autocast: bool) -> Tensor:
    return square(to(x, "fp32") if autocast else x)


def _fused_gate_up(build: Build, x: Tensor) -> Tensor:
    """Phi-3: one linear for both, cut in two; the product is up first."""
    f = build["f"]
    build.at("gate_up_proj", "mlp")
    up_states = build.linear(x, "gate_up_proj", (build["h"], f * 2), build.config.mlp_bias)
    gate, up_states = split(up_states, (f, f))
    up_states = _gate_mul(build, up_states, activated(build, gate))
    return down(build, up_states)


def activate(x: Tensor, name: str) -> Tensor:
    """An activation by its Hugging Face name, as a fused kernel where PyTorch has one."""
    if name == "relu":
        return activation_by_result(x, "relu", "threshold_backward")
    return activation(x, "silu" if name in ("silu", "swish") else "gelu")


def _gate_mul(build: Build, gate: Tensor, up: Tensor) -> Tensor:
    build.at("gate_mul", "mlp")
    return mul(gate, up)


def down(build: Build, x: Tensor) -> Tensor:
    """The projection back to the hidden size."""
    build.at("down_proj", "mlp")
    return build.linear(x, "down_proj", (build["f"], build["h"]), build.config.mlp_bias)
