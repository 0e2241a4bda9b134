"""Bottleneck adapters against modules of their published definitions around transformers' own.

Houlsby et al. 2019 (arXiv:1902.00751), Pfeiffer et al. 2020 (arXiv:2005.00247), He et al. 2021
(arXiv:2110.04366), in the forms of the `adapters` library, which transformers 5.23 has no release of.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memcalc.inputs.peft import PeftSetup
from tests.oracle.support.peft_compare import differences, step_differences
from tests.oracle.support.peft_models import PeftRun
from tests.oracle.support.tiny import TINY

LLAMA = {**TINY["llama"], "num_hidden_layers": 5}
#: Linears that end attention and MLP.
_ENDS = {"opt": ("self_attn.out_proj", "fc2"), "phi3": ("self_attn.o_proj", "mlp.down_proj")}


class Bottleneck(nn.Module):
    """W_up act(W_down x)."""

    def __init__(self, h: int, n: int, act: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
        super().__init__()
        self.down = nn.Linear(h, n, dtype=dtype)
        self.up = nn.Linear(n, h, dtype=dtype)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        dtype = x.dtype
        if not torch.is_autocast_enabled("cpu"):
            x = x.to(self.down.weight.dtype)
        made = self.up(self.act(self.down(x)))
        return made if torch.is_autocast_enabled("cpu") else made.to(dtype)


class Serial(nn.Module):
    """y + f(y) of what another module makes."""

    def __init__(self, inner: nn.Module, adapter: Bottleneck) -> None:
        super().__init__()
        self.inner, self.adapter = inner, adapter

    def forward(self, x: Tensor) -> Tensor:
        result = self.inner(x)
        return result + self.adapter(result)


class Beside(nn.Module):
    """MLP(x) + 4 f(x)."""

    def __init__(self, inner: nn.Module, adapter: Bottleneck) -> None:
        super().__init__()
        self.inner, self.adapter = inner, adapter

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + self.adapter(x) * 4.0


def of_the_sum(layer: Any, hidden_states: Tensor, **options: Any) -> Tensor:
    """A decoder layer of llama's kind whose MLP's branch y becomes y + f(x + y)."""
    residual = hidden_states
    hidden_states = layer.input_layernorm(hidden_states)
    hidden_states, _ = layer.self_attn(hidden_states=hidden_states, **options)
    hidden_states = residual + hidden_states
    residual = hidden_states
    hidden_states = layer.post_attention_layernorm(hidden_states)
    hidden_states = layer.mlp(hidden_states)
    return residual + (hidden_states + layer.adapter(residual + hidden_states))


def bottlenecks(setup: PeftSetup, family: str, dtype: torch.dtype) -> Callable[[Any], None]:
    """Freeze a model and put the setup's adapters into its layers."""

    def put(model: Any) -> None:
        h = model.config.hidden_size
        n, kind = setup.bottleneck(h), setup.bottleneck_kind
        model.requires_grad_(False)
        device = next(model.parameters()).device
        for layer in model.model.layers if family != "opt" else model.model.decoder.layers:
            with torch.device(device):
                _put(layer, kind, lambda act: Bottleneck(h, n, act, dtype), family)

    return put


def _put(layer: Any, kind: str, make: Callable[[Any], Bottleneck], family: str) -> None:
    if kind == "houlsby":
        for path in _ENDS.get(family, ("self_attn.o_proj", "mlp.down_proj")):
            above, _, name = path.rpartition(".")
            parent = layer.get_submodule(above) if above else layer
            setattr(parent, name, Serial(getattr(parent, name), make(F.silu)))
    elif kind == "pfeiffer":
        layer.adapter = make(F.relu)
        # a class of its own: transformers puts checkpointing around each class's forward
        layer.__class__ = type("OfTheSum", (type(layer),), {"forward": of_the_sum})
    else:
        layer.mlp = Beside(layer.mlp, make(F.relu))


def run_of(setup: PeftSetup, family: str = "llama", **options: Any) -> PeftRun:
    wide = setup.dtype == "fp32" or options.get("base") == "fp32"
    dtype = torch.float32 if wide else torch.bfloat16
    return PeftRun(method=bottlenecks(setup, family, dtype), **options)


@pytest.mark.parametrize("checkpoint", ["none", "full"])
@pytest.mark.parametrize("dtype", [None, "fp32"])
@pytest.mark.parametrize("kind", ["houlsby", "pfeiffer", "parallel"])
def test_every_kind(kind: str, dtype: str | None, checkpoint: str) -> None:
    setup = PeftSetup(method="adapter", kind=kind, dtype=dtype, reduction=8)
    assert not differences(TINY["llama"], run_of(setup, checkpoint=checkpoint), setup)


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3", "phi3", "opt"])
def test_families(family: str) -> None:
    own = {"opt": ("houlsby",), "phi3": ("houlsby", "parallel")}
    for kind in own.get(family, ("houlsby", "pfeiffer", "parallel")):
        setup = PeftSetup(method="adapter", kind=kind, width=12)
        assert not differences(TINY[family], run_of(setup, family), setup)


@pytest.mark.parametrize("kind", ["houlsby", "pfeiffer", "parallel"])
def test_under_autocast_and_whole_steps(kind: str) -> None:
    setup = PeftSetup(method="adapter", kind=kind)
    run = run_of(setup, base="fp32", autocast=True)
    assert not differences(TINY["llama"], run, setup)
    assert not step_differences(LLAMA, run_of(setup, steps=2), setup)
