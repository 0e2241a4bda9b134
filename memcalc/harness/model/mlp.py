"""The dense MLP: down(act(gate(x)) * up(x)), or down(act(up(x))), as one expression.

Shapes: (b, s, h) to (b, s, h), width f inside. Checked by: oracle/test_torch_saved.py,
harness/test_decoder_hf.py.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from memcalc.engine.kernels import Kernels
from memcalc.errors import ConfigError
from memcalc.harness.model.casting import Linear
from memcalc.harness.watch.scopes import op
from memcalc.inputs.model import ModelConfig

_TANH_GELU = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")


def activate(x: Tensor, name: str) -> Tensor:
    """An activation by its Hugging Face name, as torch's one kernel. Raises ConfigError."""
    if name == "relu":
        return F.relu(x)
    if name in ("silu", "swish"):
        return F.silu(x)
    if name in _TANH_GELU:
        return F.gelu(x, approximate="tanh")
    if name == "gelu":
        return F.gelu(x)
    known = ", ".join(("silu", "gelu", *_TANH_GELU, "relu"))
    raise ConfigError(f"hidden_act: got {name!r}; the decoder runs: {known}")


class NamedLinear(Linear):
    """A linear whose whole call is one operator of the ledger."""

    def __init__(self, features: tuple[int, int], bias: bool, kernels: Kernels, name: str) -> None:
        super().__init__(features, bias, kernels)
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        """x W^T + b."""
        with op(self.name):
            return super().forward(x)


class Mlp(nn.Module):
    """A dense MLP; prefix "shared_" for the expert every token has."""

    def __init__(
        self, config: ModelConfig, kernels: Kernels, width: int | None = None, prefix: str = ""
    ) -> None:
        super().__init__()
        self.act, self.prefix = config.hidden_act, prefix
        self.gated = config.gated_mlp or bool(prefix)
        h, f, bias = config.hidden_size, width or config.intermediate_size, config.mlp_bias
        self.fused = kernels.traits.fused_gate_up and self.gated and not prefix
        if self.fused:
            self.gate_up_proj = NamedLinear((h, 2 * f), bias, kernels, "gate_up_proj")
        names = ("gate_proj", "up_proj") if self.gated else ("up_proj",)
        for name in () if self.fused else names:
            self.add_module(prefix + name, NamedLinear((h, f), bias, kernels, prefix + name))
        name = f"{prefix}down_proj"
        self.add_module(name, NamedLinear((f, h), bias, kernels, name))

    def forward(self, x: Tensor) -> Tensor:
        """Each intermediate lives as long as the expression needs it."""
        if self.fused:
            return self._fused(x)
        if self.gated:
            return self._down(self._multiply(self._activate(self._gate(x)), self._up(x)))
        return self._down(self._activate(self._up(x)))

    def _fused(self, x: Tensor) -> Tensor:
        """One linear for both, cut in two; the product is up first (Phi-3)."""
        up = self.gate_up_proj(x)
        gate, up = up.chunk(2, -1)
        up = self._multiply(up, self._activate(gate))
        return self._down(up)

    def _gate(self, x: Tensor) -> Tensor:
        return self._modules[f"{self.prefix}gate_proj"](x)  # type: ignore[misc, no-any-return]

    def _up(self, x: Tensor) -> Tensor:
        return self._modules[f"{self.prefix}up_proj"](x)  # type: ignore[misc, no-any-return]

    def _down(self, x: Tensor) -> Tensor:
        name = f"{self.prefix}down_proj"
        with op(name):  # what ranks do around it (harness/ranks) belongs to it
            return self._modules[name](x)  # type: ignore[misc, no-any-return]

    def _activate(self, x: Tensor) -> Tensor:
        with op(f"{self.prefix}activation"):
            return activate(x, self.act)

    def _multiply(self, gate: Tensor, up: Tensor) -> Tensor:
        with op(f"{self.prefix}gate_mul"):
            return gate * up
