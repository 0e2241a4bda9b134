"""The optimizers of torch.optim a step can run, and fp32 master copies around any of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_IMPLEMENTATIONS: dict[str, dict[str, Any]] = {
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "loop": {"foreach": False},
}


def make_optimizers(
    named: dict[str, torch.Tensor], name: str, impl: str
) -> list[torch.optim.Optimizer]:
    """adamw, sgd, momentum, adafactor (no fused), or muon, over named parameters.

    muon updates the matrices of the blocks, AdamW in the given implementation everything else.
    """
    params, options = list(named.values()), _IMPLEMENTATIONS[impl]
    if name == "adamw":
        return [torch.optim.AdamW(params, lr=1e-3, **options)]
    if name == "sgd":
        return [torch.optim.SGD(params, lr=1e-3, **options)]
    if name == "momentum":
        return [torch.optim.SGD(params, lr=1e-3, momentum=0.9, **options)]
    if name == "adafactor":
        return [torch.optim.Adafactor(params, **options)]
    if name == "muon":
        matrices = {n for n, p in named.items() if n.startswith("layers.") and p.ndim == 2}
        rest = [p for n, p in named.items() if n not in matrices]
        adamw = torch.optim.AdamW(rest, lr=1e-3, **options)
        return [torch.optim.Muon([named[n] for n in named if n in matrices]), adamw]
    raise ValueError(f"optimizer: got {name!r}; valid: adamw, sgd, momentum, adafactor, muon")


class MasterWeights:
    """Steps fp32 copies of 16-bit parameters.

    All gradients are cast, the copies stepped, the parameters overwritten, and the casts dropped.
    """

    def __init__(self, model: nn.Module, name: str, impl: str) -> None:
        self.params = dict(model.named_parameters())
        self.copies = {n: p.detach().float() for n, p in self.params.items()}
        self.inner = make_optimizers(self.copies, name, impl)

    @torch.no_grad()
    def step(self) -> None:
        for name, parameter in self.params.items():
            if parameter.grad is not None:
                self.copies[name].grad = parameter.grad.float()
        for optimizer in self.inner:
            optimizer.step()
        for name, parameter in self.params.items():
            parameter.copy_(self.copies[name])
            self.copies[name].grad = None

    def zero_grad(self, set_to_none: bool) -> None:
        for parameter in self.params.values():
            if set_to_none:
                parameter.grad = None
            elif parameter.grad is not None:
                parameter.grad.zero_()
