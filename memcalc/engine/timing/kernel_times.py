"""Seconds of one kernel by its sizes: products, attention, element-wise work, collectives.

All take Python numbers or numpy arrays for sizes and are alone on the device: no launch from
Python (`Rates.launch_s`), no overlap. Sources and errors: docs/kernels.md.
Checked by: unit/test_kernel_times.py.
"""

from __future__ import annotations

from memcalc.engine.timing.arith import Num
from memcalc.engine.timing.attention_time import attention_s, decode_attention_s
from memcalc.engine.timing.collective_time import collective_s
from memcalc.engine.timing.gemm_time import gemm_bound, gemm_s, grouped_s
from memcalc.inputs.rates import Rates

__all__ = [
    "attention_s", "collective_s", "decode_attention_s", "gemm_bound", "gemm_s", "grouped_s",
    "moved_s",
]  # fmt: skip


def moved_s(rates: Rates, moved_bytes: Num, launches: Num = 1, name: str = "") -> Num:
    """Seconds of kernels that only move bytes: t0 a kernel, and bytes over what memory gives.

    name: "gelu bf16", the primitive and its dtype: some were measured to be slower than memory.
    """
    memory = rates.memory
    bytes_per_s = rates.kernels.get(name, memory.bytes_per_s)
    return launches * memory.t0_s + moved_bytes / bytes_per_s
