"""Executed FLOPs of one micro-batch as PyTorch counts them, kernel by kernel, while it runs.

torch's counter knows the products and CUDA's attention kernels; the CPU's flash kernel and the grouped
products of experts are added. Attention counts its whole square, as the ledger does.
Checked by: harness/test_verify.py; oracle/test_flops.py holds the ledger against the same counter.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import flop_counter

from memcalc.harness.step import TrainingStep

_aten = torch.ops.aten


def counted_flops(step: TrainingStep) -> int | None:
    """FLOPs of forward and backward of one micro-batch; None where code is compiled or fp8."""
    kernels = step.plan.kernels
    if kernels.compiled or kernels.fp8_linear:
        return None
    counter = flop_counter.FlopCounterMode(display=False, custom_mapping=_more_kernels())
    with counter:
        step.micro_batch(lambda name: None, False)
    step.clear_gradients()
    return int(counter.get_total_flops())


def _more_kernels() -> dict[Any, Any]:
    """Kernels that torch's own table leaves out, of those this release has."""
    name = "_scaled_dot_product_flash_attention_for_cpu"
    formulas = {name: _forward, f"{name}_backward": _backward, "_grouped_mm": _grouped}
    return {getattr(_aten, n): count for n, count in formulas.items() if hasattr(_aten, n)}


def _grouped(rows: Any, weight: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """2 R i o: rows (R, i) by weights (E, i, o), or (i, R) by (R, o) cut into groups of rows."""
    return int(2 * rows[0] * rows[1] * weight[-1])


def _forward(q: Any, k: Any, v: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """4 b a s_q s_kv d: two products over the whole square; shapes (b, a, s, d)."""
    b, a, s, d = q
    return int(4 * b * a * s * k[2] * d)


def _backward(
    gradient: Any, q: Any, k: Any, v: Any, *args: Any, out_shape: Any = None, **kwargs: Any
) -> int:
    """Five products: the scores again, and the gradients of q, k, v and the weights."""
    b, a, s, d = q
    return int(10 * b * a * s * k[2] * d)
