"""One layer of Megatron-Core: attention and MLP, each with its norm inside its first linear.

Shapes: x (s_t, b, h), the rank's rows of the stream. Both branches end in one kernel that adds the
bias, drops and adds the stream.
Source: Megatron-Core 0.14, transformer/transformer_layer.py, mlp.py, models/gpt/gpt_layer_specs.py.
Checked by: oracle/test_megatron_functions.py, unit/test_megatron_layers.py.
"""

from __future__ import annotations

from memcalc.engine.aten.megatron_ops import bias_dropout_add
from memcalc.engine.aten.pointwise import add
from memcalc.engine.aten.te_linear import Weights, linear, norm_linear
from memcalc.engine.aten.te_tokens import fused_activation
from memcalc.engine.blocks.megatron_attention import WithBias, attention
from memcalc.engine.blocks.megatron_mla import latent_attention
from memcalc.engine.blocks.megatron_moe import mixture
from memcalc.engine.blocks.megatron_parts import (
    column,
    norm_parameters,
    parameters,
    recomputes,
    row,
)
from memcalc.engine.blocks.mlp import activate
from memcalc.engine.build import Build
from memcalc.engine.checkpoint import checkpoint_reentrant
from memcalc.engine.tensors import Tensor

#: Activations with a fused kernel: gated ones by silu, and GELU with a bias.
_GELU = ("gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast")


def megatron_block(build: Build, x: Tensor) -> Tensor:
    """x + attention(norm(x)), then x + mlp(norm(x))."""
    attended = latent_attention if build.config.mla else attention
    x = _joined(build, attended(build, x), x, "attn_residual")
    fed = mixture if build.kind.sparse else mlp
    return _joined(build, fed(build, x), x, "mlp_residual")


def _joined(build: Build, branch: WithBias, residual: Tensor, op: str) -> Tensor:
    build.at(op, "residual")
    p = build.config.residual_dropout if build.kernels.use_dropout else 0.0
    return bias_dropout_add(*branch, residual, p)


def mlp(build: Build, x: Tensor) -> WithBias:
    """The dense MLP, a checkpoint of its own where it is computed again; its bias is added later."""

    def projected(hidden: Tensor) -> Tensor:
        return _projected(build, hidden)

    out = checkpoint_reentrant(projected, x) if recomputes(build, "mlp") else projected(x)
    build.at("down_proj", "mlp")
    has_bias = build.config.mlp_bias
    return out, build.param("down_proj.bias", (build["h"],)) if has_bias else None


def _projected(build: Build, x: Tensor) -> Tensor:
    """Gate and up as one linear, norm inside; the bias of it joins the activation; down."""
    config = build.config
    build.at("up_proj", "mlp")
    width = build["f"] * 2 if config.gated_mlp else build["f"]
    weight = parameters(build, "up_proj", (width, build["h"]), False)
    bias = build.param("up_proj.bias", (width,)) if config.mlp_bias else None
    norms = norm_parameters(build, "mlp_norm", build["h"])
    inner = norm_linear(x, Weights(weight, norms), column(build))
    build.at("activation", "mlp")
    inner = activated(build, inner, bias)
    build.at("down_proj", "mlp")
    weight = parameters(build, "down_proj", (build["h"], build["f"]), False)
    return linear(inner, weight, row(build))


def activated(build: Build, x: Tensor, bias: Tensor | None) -> Tensor:
    """The activation: one kernel for gated ones and for GELU with a bias, else operators."""
    config = build.config
    beside = () if bias is None else (bias,)
    if config.gated_mlp:
        return fused_activation(x, *beside, gated=True)
    if bias is not None and config.hidden_act in _GELU:
        return fused_activation(x, bias, gated=False)
    return activate(x if bias is None else add(x, bias), config.hidden_act)
