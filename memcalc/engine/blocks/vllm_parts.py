"""Parts that vLLM's layers share: norms with and without the residual, sums over tp ranks, activations.

A norm that adds the residual works in place on both; Gemma's makes new tensors; layer norms have no such
kernel, so the sum is an operator of its own. What tp ranks sum comes back in a new tensor.
Source: vllm-project/vllm, vllm/model_executor/layers/layernorm.py, activation.py, linear.py,
vllm/distributed/device_communicators/. Checked by: unit/test_serving_vllm.py.
"""

from __future__ import annotations

from memcalc.engine.aten.pointwise import add
from memcalc.engine.build import Build
from memcalc.engine.kernel_log import read_bytes
from memcalc.engine.sizes import Size
from memcalc.engine.tensors import Tensor


def normed(build: Build, x: Tensor, op: str, width: Size | None = None) -> Tensor:
    """The model's norm of x (..., width) in a new tensor: one kernel."""
    build.at(op, "norm")
    size = build["h"] if width is None else width
    build.param(f"{op}.weight", (size,))
    if build.config.norm_type == "layernorm" and build.config.norm_bias:
        build.param(f"{op}.bias", (size,))
    name = "layer_norm" if build.config.norm_type == "layernorm" else "rms_norm"
    build.tape.reads((x,))
    return build.tape.empty(name, x.shape, x.dtype)


def added_norm(build: Build, x: Tensor, residual: Tensor | None, op: str) -> tuple[Tensor, Tensor]:
    """The norm of residual + x, and that sum: both in place, but the first norm and Gemma's."""
    if residual is None:
        return normed(build, x, op), x
    if build.config.norm_unit_offset:  # torch.compile's kernel of GemmaRMSNorm
        build.at(op, "norm")
        build.param(f"{op}.weight", (build["h"],))
        build.tape.reads((x, residual))
        total = build.tape.empty("fused_add_rms_norm", x.shape, x.dtype)
        return build.tape.empty("fused_add_rms_norm", x.shape, x.dtype), total
    build.at(op, "norm")
    build.param(f"{op}.weight", (build["h"],))
    build.tape.moves("fused_add_rms_norm", x.dtype, read_bytes(x) * 4)
    return x, residual


def summed(build: Build, x: Tensor, axis: str = "tp") -> Tensor:
    """The sum of what the ranks of an axis have; x itself where there is one rank."""
    if axis not in build.dims:
        return x
    return build.tape.empty("all_reduce", x.shape, x.dtype)


def plus(build: Build, x: Tensor, y: Tensor, op: str) -> Tensor:
    """x + y by an operator of its own."""
    build.at(op, "residual")
    return add(x, y)


def activated(build: Build, x: Tensor, op: str, width: Size) -> Tensor:
    """act(gate) * up of a joint product (..., 2 width), or act(x): one kernel, a new tensor."""
    build.at(op, "mlp")
    build.tape.reads((x,))
    name = "silu_and_mul" if build.config.gated_mlp else "activation"
    return build.tape.empty(name, (*x.shape[:-1], width), x.dtype)
