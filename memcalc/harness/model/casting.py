"""CUDA autocast spelled out as casts, and the linear layer that uses them.

Autocast on a CPU follows other rules than on CUDA, so the decoder casts by itself and one code gives
the same tensors everywhere. Inside `cast_scope` a parameter is cast once and its copy shared until the
outermost scope ends, as torch's weight cache does. Backward runs outside, so a recomputed block opens
a scope and casts again. In a compiled block the compiler shares the copies.
Source: torch/csrc/autograd/autocast_mode.cpp. Checked by: oracle/test_torch_saved.py,
oracle/test_hf_autocast.py (transformers under the same rules).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memcalc.engine.kernels import Kernels
from memcalc.errors import ConfigError
from memcalc.harness.model.fp8 import fp8_linear

DTYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_cache: dict[int, Tensor] | None = None
_NOTHING = nullcontext()


def cast_scope(enabled: bool) -> AbstractContextManager[Any]:
    """Share weight casts until the outermost scope closes; does nothing unless `enabled`."""
    if not enabled or torch.compiler.is_compiling() or _cache is not None:
        return _NOTHING
    return _sharing()


@contextmanager
def _sharing() -> Iterator[None]:
    global _cache
    _cache = {}
    try:
        yield
    finally:
        _cache = None


def cast_parameter(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    """A parameter as a product reads it: itself, or its copy in `dtype`, shared inside a scope."""
    if parameter.dtype == dtype:
        return parameter
    if torch.compiler.is_compiling() or _cache is None:
        return parameter.to(dtype)
    if id(parameter) not in _cache:
        _cache[id(parameter)] = parameter.to(dtype)
    return _cache[id(parameter)]


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, kernels: Kernels, fp8: bool = False
) -> Tensor:
    """F.linear, its operands cast where autocast would: bias, weight, input, in that order."""
    if not kernels.autocast:
        return F.linear(x, weight, bias)
    dtype = DTYPES[kernels.compute_dtype]
    bias = None if bias is None else cast_parameter(bias, dtype)
    weight = cast_parameter(weight, dtype)
    if fp8 and bias is None:
        return fp8_linear(x.to(dtype), weight)
    return F.linear(x.to(dtype), weight, bias)


class Linear(nn.Linear):
    """A linear layer under the run's casts. Shapes: (..., in) to (..., out).

    Under fp8-mixed the linears of the blocks without a bias run in fp8; routers, gates, the head and
    projections outside the blocks stay in 16 bit, as fp8 recipes leave them.
    """

    def __init__(
        self, features: tuple[int, int], bias: bool, kernels: Kernels, fp8: bool = True
    ) -> None:
        super().__init__(*features, bias=bias)
        self.kernels, self.fp8 = kernels, fp8 and kernels.fp8_linear
        if self.fp8 and not bias and any(n % 16 for n in features):
            raise ConfigError(
                f"fp8-mixed: got a linear of {features[0]} by {features[1]}; "
                "rule: both multiples of 16; valid: bf16-mixed"
            )

    def reset_parameters(self) -> None:
        """Nothing: a decoder draws its weights as a whole."""

    def forward(self, x: Tensor) -> Tensor:
        """x W^T + b."""
        return linear(x, self.weight, self.bias, self.kernels, self.fp8)
