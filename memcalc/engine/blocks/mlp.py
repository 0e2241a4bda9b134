"""The dense MLP: down(act(gate(x)) * up(x)), or down(act(up(x)))."""

from __future__ import annotations

from memcalc.engine.aten.pointwise import activation, activation_by_result, mul
from memcalc.engine.build import Build
from memcalc.engine.tensors import Tensor


def mlp(build: Build, x: Tensor) -> Tensor:
    """The MLP as one expression: each intermediate lives as long as the expression needs it."""
    if build.config.gated_mlp:
        return _down(build, _gate_mul(build, _activated(build, _gate(build, x)), _up(build, x)))
    return _down(build, _activated(build, _up(build, x)))


def _gate(build: Build, x: Tensor) -> Tensor:
    build.at("gate_proj", "mlp")
    return build.linear(x, "gate_proj", (build["h"], build["f"]), build.config.mlp_bias)


def _up(build: Build, x: Tensor) -> Tensor:
    build.at("up_proj", "mlp")
    return build.linear(x, "up_proj", (build["h"], build["f"]), build.config.mlp_bias)


def _activated(build: Build, x: Tensor) -> Tensor:
    build.at("activation", "mlp")
    return activate(x, build.config.hidden_act)


def activate(x: Tensor, name: str) -> Tensor:
    """An activation by its Hugging Face name, as a fused kernel where PyTorch has one."""
    if name == "relu":
        return activation_by_result(x, "relu", "threshold_backward")
    return activation(x, "silu" if name in ("silu", "swish") else "gelu")


def _gate_mul(build: Build, gate: Tensor, up: Tensor) -> Tensor:
    build.at("gate_mul", "mlp")
    return mul(gate, up)


def _down(build: Build, x: Tensor) -> Tensor:
    build.at("down_proj", "mlp")
    return build.linear(x, "down_proj", (build["f"], build["h"]), build.config.mlp_bias)
