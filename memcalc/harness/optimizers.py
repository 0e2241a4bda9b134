"""The optimizers of torch.optim a step can run, and fp32 master copies around any of them.

Checked by: oracle/test_step_peak.py (bytes), harness/test_step.py (the loss falls under each).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn

from memcalc.engine.optimizer import OptimizerPlan
from memcalc.errors import ConfigError
from memcalc.harness.watch.scopes import op

_IMPLEMENTATIONS: Final[dict[str, dict[str, Any]]] = {
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "loop": {"foreach": False},
}
#: Learning rates at which a freshly drawn decoder's loss falls on a fixed batch.
_RATES: Final = {"adamw": 1e-3, "sgd": 0.5, "momentum": 0.1, "adafactor": 1e-2, "muon": 1e-2}


class Steps(Protocol):
    """What a training step asks of an optimizer."""

    def step(self) -> Any:
        """Update the parameters from their gradients."""

    def zero_grad(self, set_to_none: bool) -> None:
        """Drop or clear the gradients."""


def make_optimizers(plan: OptimizerPlan, model: nn.Module) -> list[Steps]:
    """The optimizers of a plan: none, one, two for muon, or one around master copies.

    None where parameters are stepped inside backward.

    Raises ConfigError for those PyTorch has no implementation of.
    """
    if plan.name == "none" or plan.in_backward:
        return []
    if plan.name not in _RATES:
        raise ConfigError(
            f"optimizer: got {plan.name!r}, not in torch.optim; valid to run: {', '.join(_RATES)}, none"
        )
    if plan.state_dtype is not None:
        raise ConfigError(
            f"optimizer-dtype: got {plan.state_dtype!r}; torch.optim keeps states in the parameters' own"
        )
    if plan.master:
        return [MasterWeights(model, plan.name, plan.impl)]
    return list(torch_optimizers(trained(model), plan.name, plan.impl))


def trained(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that train, by name."""
    return {name: one for name, one in model.named_parameters() if one.requires_grad}


def step_in_backward(plan: OptimizerPlan, model: nn.Module) -> dict[str, torch.optim.Optimizer]:
    """An optimizer for each parameter, which steps and drops the gradient as soon as it is there."""
    made: dict[str, torch.optim.Optimizer] = {}
    for name, parameter in trained(model).items() if plan.name != "none" else ():
        (own,) = torch_optimizers({name: parameter}, plan.name, plan.impl)
        parameter.register_post_accumulate_grad_hook(_stepped(own))  # type: ignore[no-untyped-call]
        made[name] = own
    return made


def _stepped(optimizer: torch.optim.Optimizer) -> Callable[[Tensor], None]:
    def step(parameter: Tensor) -> None:
        with op("optimizer"):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return step


def torch_optimizers(named: dict[str, Tensor], name: str, impl: str) -> list[torch.optim.Optimizer]:
    """adamw, sgd, momentum, adafactor (no fused), or muon, over named parameters.

    muon updates the matrices of the blocks, AdamW in the given implementation everything else.
    """
    params, options, rate = list(named.values()), _IMPLEMENTATIONS[impl], _RATES[name]
    if name == "adamw":
        return [torch.optim.AdamW(params, lr=rate, **options)]
    if name == "sgd":
        return [torch.optim.SGD(params, lr=rate, **options)]
    if name == "momentum":
        return [torch.optim.SGD(params, lr=rate, momentum=0.9, **options)]
    if name == "adafactor":
        return [torch.optim.Adafactor(params, lr=rate, **options)]
    if not hasattr(torch.optim, "Muon"):
        raise ConfigError(
            f"optimizer: got 'muon', which torch {torch.__version__} lacks; rule: 2.9"
        )
    matrices = {n for n, p in named.items() if n.startswith("layers.") and p.ndim == 2}
    rest = [p for n, p in named.items() if n not in matrices]
    found: list[torch.optim.Optimizer] = []
    if matrices:
        found.append(torch.optim.Muon([named[n] for n in named if n in matrices], lr=rate))
    if rest:
        found.append(torch.optim.AdamW(rest, lr=_RATES["adamw"], **options))
    return found


class MasterWeights:
    """Steps fp32 copies of 16-bit parameters.

    All gradients are cast, the copies stepped, the parameters overwritten, and the casts dropped.
    """

    def __init__(self, model: nn.Module, name: str, impl: str) -> None:
        self.params = trained(model)
        self.copies = {n: p.detach().float() for n, p in self.params.items()}
        self.inner = torch_optimizers(self.copies, name, impl)

    @torch.no_grad()
    def step(self) -> None:
        """Update the copies and overwrite the parameters with them."""
        for name, parameter in self.params.items():
            if parameter.grad is not None:
                self.copies[name].grad = parameter.grad.float()
        for optimizer in self.inner:
            optimizer.step()
        for name, parameter in self.params.items():
            parameter.copy_(self.copies[name])
            self.copies[name].grad = None

    def zero_grad(self, set_to_none: bool) -> None:
        """Drop or clear the 16-bit gradients."""
        for parameter in self.params.values():
            if set_to_none:
                parameter.grad = None
            elif parameter.grad is not None:
                parameter.grad.zero_()
