"""A frozen matrix kept in 4 bits, in plain PyTorch: what QLoRA's base is, where bitsandbytes is missing.

Blocks of 64 weights share a scale; a weight is one of 16 numbers (NF4, FP4) times it. Nested, the scales
are themselves 8-bit codes of differences from their mean, 256 of which share a scale. A product writes
the whole matrix out in 16 bits first, forward and backward, and keeps nothing of its input, as
bitsandbytes does it for many rows; what stays is as large as there. Unpacking goes piece by piece, so that
inside an operator it takes _PIECE elements of scratch at a time.
Source: Dettmers et al. 2023, QLoRA (arXiv:2305.14314), sec. 3 and app. E; bitsandbytes 0.50.2,
autograd/_functions.py (MatMul4Bit). Checked by: oracle/test_harness_qlora.py, harness/test_packed.py.
"""

from __future__ import annotations

from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK: Final = 64
NESTED_BLOCK: Final = 256
_PIECE: Final = 1 << 20
#: The 16 numbers of a 4-bit code, by format.
TABLES: Final = {
    "nf4": (
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
        0.7229568362236023, 1.0,
    ),
    "fp4": (
        0.0, 0.0052083334, 0.6666667, 1.0, 0.33333334, 0.5, 0.16666667, 0.25,
        -0.0, -0.0052083334, -0.6666667, -1.0, -0.33333334, -0.5, -0.16666667, -0.25,
    ),
}  # fmt: skip


class Packed(nn.Module):
    """A matrix (o, i) in 4 bits. name: nf4 | fp4, with `-plain` where its scales are not packed too."""

    codes: Tensor  # (count / 2, 1) uint8, two weights a byte
    table: Tensor
    absmax: Tensor
    nested_absmax: Tensor
    nested_table: Tensor
    offset: Tensor

    def __init__(self, shape: tuple[int, int], name: str, dtype: torch.dtype) -> None:
        super().__init__()
        kind, _, plain = name.partition("-")
        self.shape, self.nested, self.dtype = shape, not plain, dtype
        count = shape[0] * shape[1]
        scales = -(-count // BLOCK)
        self.register_buffer("codes", torch.zeros(-(-count // 2), 1, dtype=torch.uint8))
        self.register_buffer("table", torch.tensor(TABLES[kind], dtype=torch.float32))
        small = torch.uint8 if self.nested else torch.float32
        self.register_buffer("absmax", torch.zeros(scales, dtype=small))
        if self.nested:
            groups = -(-scales // NESTED_BLOCK)
            self.register_buffer("nested_absmax", torch.zeros(groups, dtype=torch.float32))
            steps = torch.linspace(-1.0, 1.0, 256, dtype=torch.float32)
            self.register_buffer("nested_table", steps)
            self.register_buffer("offset", torch.zeros((), dtype=torch.float32))

    def draw(self) -> None:
        """A matrix from N(0, 0.02), packed."""
        weight = torch.empty(self.shape, device=self.codes.device).normal_(0.0, 0.02)
        self.pack(weight)

    @torch.no_grad()
    def pack(self, weight: Tensor) -> None:
        """Take a matrix (o, i): the nearest code of every weight over the largest of its block."""
        flat = weight.detach().float().reshape(-1)
        padded = F.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
        largest = padded.abs().amax(1)
        self._take_scales(largest)
        shares = (padded / largest.clamp(min=1e-30)[:, None]).reshape(-1)[: len(flat)]
        order = self.table.argsort()
        between = (self.table[order][1:] + self.table[order][:-1]) / 2
        codes = order[torch.bucketize(shares, between)].to(torch.uint8)
        codes = F.pad(codes, (0, len(codes) % 2)).view(-1, 2)
        self.codes.copy_((codes[:, 0] << 4 | codes[:, 1])[:, None])

    def _take_scales(self, largest: Tensor) -> None:
        if not self.nested:
            self.absmax.copy_(largest)
            return
        self.offset.copy_(largest.mean())
        apart = largest - self.offset
        groups = F.pad(apart, (0, -len(apart) % NESTED_BLOCK)).view(-1, NESTED_BLOCK)
        self.nested_absmax.copy_(groups.abs().amax(1))
        shares = groups / self.nested_absmax.clamp(min=1e-30)[:, None]
        codes = ((shares + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        self.absmax.copy_(codes.view(-1)[: len(apart)])

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x (..., i) times the matrix: (..., o). The matrix and its scales end with the call."""
        if self.nested:
            scales = dequantize_blockwise(self.absmax, self.nested_absmax, self.nested_table)
            absmax = scales + self.offset
        else:
            absmax = self.absmax
        matrix = dequantize_4bit(self.codes, absmax, self.table, list(self.shape), x.dtype)
        return F.linear(x, matrix, bias)

    def written(self, dtype: torch.dtype) -> Tensor:
        """The matrix in the dtype it was loaded in, then in this one."""
        absmax = self.absmax
        if self.nested:
            absmax = dequantize_blockwise(self.absmax, self.nested_absmax, self.nested_table)
            absmax += self.offset
        matrix = dequantize_4bit(self.codes, absmax, self.table, list(self.shape), self.dtype)
        del absmax
        return matrix.to(dtype)  # type: ignore[no-any-return]

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The product with its gradient of x; bias takes none."""
        return PackedProduct.apply(x, bias, self)  # type: ignore[no-any-return, no-untyped-call]


class PackedProduct(torch.autograd.Function):
    """x W^T + b of a packed W, which is written out again for the gradient of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, packed: Packed) -> Tensor:
        ctx.packed = packed
        return packed.product(x, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None]:
        gradient = grads[0]
        if not ctx.needs_input_grad[0]:
            return None, None, None
        return torch.matmul(gradient, ctx.packed.written(gradient.dtype)), None, None


@torch.library.custom_op("memcalc::dequantize_blockwise", mutates_args=())
def dequantize_blockwise(codes: Tensor, absmax: Tensor, table: Tensor) -> Tensor:
    """fp32 scales of their 8-bit codes, NESTED_BLOCK of which share one of absmax."""
    spread = absmax.repeat_interleave(NESTED_BLOCK)[: len(codes)]
    return table[codes.int()].mul_(spread)


@dequantize_blockwise.register_fake
def _(codes: Tensor, absmax: Tensor, table: Tensor) -> Tensor:
    return torch.empty_like(codes, dtype=torch.float32)


@torch.library.custom_op("memcalc::dequantize_4bit", mutates_args=())
def dequantize_4bit(
    codes: Tensor, absmax: Tensor, table: Tensor, shape: list[int], dtype: torch.dtype
) -> Tensor:
    """The matrix of 4-bit codes, two a byte, the first in the upper half; BLOCK share one of absmax."""
    out = torch.empty(shape, dtype=dtype, device=codes.device)
    flat, bytes_in_all = out.view(-1), codes.view(-1)
    every = torch.arange(256, device=codes.device)
    pairs = torch.stack((table[every >> 4], table[every & 15]), 1)  # both numbers of every byte
    for begin in range(0, len(bytes_in_all), _PIECE // 2):
        some = bytes_in_all[begin : begin + _PIECE // 2]
        start, end = 2 * begin, min(2 * (begin + len(some)), len(flat))
        values = F.embedding(some.int(), pairs).view(-1)[: end - start]
        whole = len(values) // BLOCK * BLOCK
        scales = absmax[start // BLOCK : -(-end // BLOCK)]
        values[:whole].view(-1, BLOCK).mul_(scales[: whole // BLOCK, None])
        values[whole:].mul_(scales[-1])
        flat[start:end] = values
    return out


@dequantize_4bit.register_fake
def _(codes: Tensor, absmax: Tensor, table: Tensor, shape: list[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=codes.device)
