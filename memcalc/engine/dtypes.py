"""Bytes an element of each dtype takes, and which dtype comes of two.

Checked by: oracle/test_torch_events.py (every allocation of a step against PyTorch's own).
"""

from __future__ import annotations

from typing import Final

ITEMSIZE: Final = {
    "fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "int64": 8, "int32": 4, "bool": 1, "uint8": 1,
    "int8": 1, "fp64": 8, "complex64": 8,
}  # fmt: skip
_RANK: Final = {
    "bool": 0, "uint8": 1, "int32": 2, "int64": 3, "fp8": 4, "fp16": 5, "bf16": 5, "fp32": 6,
}  # fmt: skip


def promote(left: str, right: str) -> str:
    """The dtype of a binary operation on two tensors, by PyTorch's promotion."""
    if left == right:
        return left
    if {left, right} == {"bf16", "fp16"}:
        return "fp32"
    return left if _RANK[left] > _RANK[right] else right
