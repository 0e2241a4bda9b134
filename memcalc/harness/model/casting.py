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
from memcalc.harness.model.attention_core import dropout
from memcalc.harness.model.fp8 import fp8_linear
from memcalc.harness.model.packed import Packed
from memcalc.harness.watch.scopes import op

DTYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

#: What an adapter's result is multiplied by: alpha over rank.
SCALING: Final = 2.0
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
    if not parameter.requires_grad:  # autocast keeps copies of what learns alone
        return parameter.to(dtype)
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
        self.adapter: LowRank | None = None
        self.packed: Packed | None = None  # in place of the weight
        if self.fp8 and not bias and any(n % 16 for n in features):
            raise ConfigError(
                f"fp8-mixed: got a linear of {features[0]} by {features[1]}; "
                "rule: both multiples of 16; valid: bf16-mixed"
            )

    def reset_parameters(self) -> None:
        """Nothing: a decoder draws its weights as a whole."""

    def forward(self, x: Tensor) -> Tensor:
        """x W^T + b, and what an adapter adds to it."""
        if self.packed is not None:
            return self._over_packed(x, self.packed)
        if self.adapter is None:
            return linear(x, self.weight, self.bias, self.kernels, self.fp8)
        result = linear(x, self.weight, self.bias, self.kernels)
        # not a method of its own: its caller would hold the result that PEFT's code lets go
        with op(self.adapter.op):
            dtype = result.dtype
            x = x.to(self.adapter.dtype)
            result = result + self.adapter(x) * SCALING
            return result.to(dtype)  # type: ignore[no-any-return]

    def _over_packed(self, x: Tensor, packed: Packed) -> Tensor:
        """The same of a matrix in 4 bits, in PEFT's order of operations for bitsandbytes' linears."""
        result = self._unpacked(x, packed)
        if self.adapter is None:
            return result
        with op(self.adapter.op):
            dtype, autocast = result.dtype, self.kernels.autocast
            result = result.clone()
            if not autocast:
                x = x.to(self.adapter.dtype)
            output = self.adapter(x) * SCALING
            if not autocast:
                output = output.to(dtype)
            return result + output  # type: ignore[no-any-return]

    def _unpacked(self, x: Tensor, packed: Packed) -> Tensor:
        """The product in the compute dtype, given back in x's (bitsandbytes' Linear4bit)."""
        compute, dtype = DTYPES[self.kernels.compute_dtype], x.dtype
        x = x.to(compute)
        bias = None if self.bias is None else self.bias.to(compute)
        return packed(x, bias).to(dtype)  # type: ignore[no-any-return]


class LowRank(nn.Module):
    """LoRA beside a linear (i, o): B(A(dropout(x))) of rank r, in a dtype of its own.

    op: the ledger's operator. Source: PEFT 0.21.2, tuners/lora/layer.py (Linear.forward), bnb.py.
    """

    def __init__(
        self, features: tuple[int, int], rank: int, dtype: str, dropout: float, kernels: Kernels
    ) -> None:
        super().__init__()
        self.op, self.dtype, self.p, self.device = "", DTYPES[dtype], dropout, kernels.device
        self.lora_A = Linear((features[0], rank), False, kernels, fp8=False)
        self.lora_B = Linear((rank, features[1]), False, kernels, fp8=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., i) in the adapter's dtype: (..., o)."""
        return self.lora_B(self.lora_A(self._dropped(x)))  # type: ignore[no-any-return]

    def _dropped(self, x: Tensor) -> Tensor:
        return dropout(x, self.p, self.device) if self.p else x
