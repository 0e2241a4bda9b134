"""CUDA autocast to bf16, spelled out as casts, since autocast on a CPU follows other rules.

Inside `autocast_scope` a parameter is cast once and its copy shared until the outermost scope
ends, as torch's weight cache does. Backward runs outside, so a recomputed block opens a scope and
casts again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_cache: dict[int, Tensor] | None = None


@contextmanager
def autocast_scope(enabled: bool) -> Iterator[None]:
    """Share weight casts until the outermost scope closes; does nothing unless `enabled`."""
    global _cache
    if not enabled or _cache is not None:
        yield
        return
    _cache = {}
    try:
        yield
    finally:
        _cache = None


def _cast_parameter(parameter: Tensor) -> Tensor:
    if parameter.dtype == torch.bfloat16:
        return parameter
    if _cache is None:
        return parameter.to(torch.bfloat16)
    if id(parameter) not in _cache:
        _cache[id(parameter)] = parameter.to(torch.bfloat16)
    return _cache[id(parameter)]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, mixed: bool) -> Tensor:
    """F.linear, with operands cast to bf16 where the precision is mixed.

    Bias, weight, input: the order of torch's own autocast wrapper, as built by gcc.
    """
    if not mixed:
        return F.linear(x, weight, bias)
    bias = None if bias is None else _cast_parameter(bias)
    weight = _cast_parameter(weight)
    return F.linear(x.to(torch.bfloat16), weight, bias)


class Linear(nn.Linear):
    """A linear layer that is one ledger operator."""

    def __init__(self, n_in: int, n_out: int, bias: bool, mixed: bool) -> None:
        super().__init__(n_in, n_out, bias=bias)
        self.mixed = mixed

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias, self.mixed)
