"""Alignment: what tensor cores lose where rows of a product's operands start at odd addresses.

Operands are read and results written along their contiguous dimension, 16 bytes at a time where every
row starts at a multiple of that; where it does not, loads are narrower. The dimensions that count:

    forward y = x W^T and dgrad dx = dy W     n, k        rows of x, W, y; of dy, W, dx
    wgrad dW = dy^T x                         m, n        rows of dy, x, dW
    batched products (attention)              m, n, k     either operand may be transposed

The worst of them decides. Of the rate of rows that are multiples of 128 bytes are left:

    rows of a multiple of      2 bytes: 0.29    4 or 8: 0.55    16: 0.89    32 or 64: 0.985

Measured on an A100 by Anthony et al., "The Case for Co-Designing Model Architectures with Hardware"
(arXiv:2401.14489); their figures are in EleutherAI/cookbook, sizing/results: 8192 x 14336 x v of
vocab_v_sweep.out, v from 51136 to 51221, medians over v = 51136 and 51200. At smaller products there is
more left (mm/ksweep_low, one side of 130 to 430: A100 0.60 to 0.70 for 4 and 8 bytes, 0.91 to 0.99 for
16; V100 0.68 to 0.75). Other generations: assumed the same. NVIDIA, "Matrix Multiplication Background
User's Guide", section 2.2, has the rule: since cuBLAS 11 tensor cores run at any alignment, best at
multiples of 16 bytes, on A100 of 128. Products that do not run on tensor cores lose nothing.
Checked by: unit/test_alignment.py.
"""

from __future__ import annotations

from typing import Any, Final

from memcalc.engine.timing.arith import Num, minimum
from memcalc.errors import unknown

#: Parts of a linear's products.
PARTS: Final = ("forward", "dgrad", "wgrad")
#: (bytes, share): of the rate of better aligned rows is left where rows are no multiple of these bytes.
STEPS: Final = ((128, 0.985), (32, 0.89), (16, 0.55), (4, 0.29))
#: Architectures whose tensor cores cuBLAS reaches.
CUBLAS: Final = frozenset(
    ("volta", "turing", "ampere", "ada", "hopper", "blackwell", "blackwell-ultra")
)
#: Products on vector units.
VECTOR: Final = frozenset(("fp32",))


def share_left(item_bytes: int, part: str, *shape: Num) -> Num:
    """The share of its aligned rate that a product (batch, m, n, k) on tensor cores keeps.

    Sizes may be arrays. Raises ConfigError for an unknown part.
    """
    if part not in PARTS:
        raise unknown("part of a product", part, PARTS)
    batch, m, n, k = shape
    several = batch != 1
    rows = (m, n, k * several) if part == "wgrad" else (n, k, m * several)
    first, second, third = (_of_rows(item_bytes * row) for row in rows)
    return minimum(minimum(first, second), third)


def aligned(item_bytes: int, *shape: Num) -> Num:
    """1 where m, n and k of a product (batch, m, n, k) are multiples of 16 bytes, else 0."""
    _, m, n, k = shape
    odd: Any = (item_bytes * m % 16 != 0) | (item_bytes * n % 16 != 0) | (item_bytes * k % 16 != 0)
    return 1 - odd


def _of_rows(row_bytes: Num) -> Num:
    """The share left where rows have so many bytes; 0 bytes: all."""
    left: Any = 1.0
    above = 1.0
    for unit, share in STEPS:
        odd = row_bytes % unit != 0
        left = left - (above - share) * odd
        above = share
    return left
