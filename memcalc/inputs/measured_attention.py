"""Rates of fused attention from a calibration: by kernel, by dtype and pass, and by width of a head.

Checked by: unit/test_measured_rates.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from memcalc.inputs.rate_figures import AttentionRate, Rates

Row = Mapping[str, Any]
#: Width of a head the ceilings of attention are for; `narrow` is the ceiling at half of it.
_WIDTH: Final = 128
#: A rate that costs nothing: bytes are in the ceilings.
_FREE: Final = 1e24


def measured_attention(
    rows: Sequence[Row], base: Rates, beside_s: float, filled: list[str]
) -> dict[str, AttentionRate]:
    """Rates by kernel, for both passes and of 16-bit operands, and by "kernel dtype pass"."""
    found: dict[str, AttentionRate] = {}
    scales = []
    keys = dict.fromkeys(
        (row["kernel"], row.get("dtype", "bf16"), row["direction"]) for row in rows
    )
    for kernel, dtype, direction in keys:
        mine = [row for row in rows if row.get("flops_per_s") and
                (row["kernel"], row.get("dtype", "bf16"), row["direction"])
                == (kernel, dtype, direction)]  # fmt: skip
        if mine:
            found[f"{kernel} {dtype} {direction}"] = _one_pass(mine, beside_s)
        for row in mine:
            alone = _one_pass([row], beside_s)
            found[f"{kernel} {dtype} {direction} {row['head_dim']}"] = alone._replace(
                narrow=1.0, wide=1.0
            )
    for kernel, default in base.attention.items():
        forward = found.get(f"{kernel} bf16 forward")
        if forward is None:
            continue
        scales.append(forward.forward_flops_per_s / default.forward_flops_per_s)
        back = found.get(f"{kernel} bf16 backward", forward)
        ratio = back.forward_flops_per_s / forward.forward_flops_per_s
        found[kernel] = forward._replace(backward=ratio)
    for kernel, default in base.attention.items():
        if kernel not in found:
            filled.append(f"attention {kernel}")
            scale = scales[0] if scales else 1.0
            faster = default.forward_flops_per_s * scale
            found[kernel] = default._replace(forward_flops_per_s=faster)
    return found


def _one_pass(rows: Iterable[Row], beside_s: float) -> AttentionRate:
    """One pass of a kernel from its rows by head width: P (1 + ramp / s), bytes in P."""
    by_width = {int(row["head_dim"]): row for row in rows}
    nearest = min(by_width, key=lambda width: abs(width - _WIDTH))
    row = by_width[nearest]
    half = by_width.get(_WIDTH // 2) if nearest == _WIDTH else None
    narrow = half["flops_per_s"] / row["flops_per_s"] if half else 1.0
    return AttentionRate(
        forward_flops_per_s=row["flops_per_s"],
        bytes_per_s=_FREE,
        t0_s=beside_s,
        narrow=narrow,
        wide=1.0,
        ramp=row.get("half_seq_len", 0.0),
        row=0.0,
        backward=1.0,
        multiprocessors=1.0,
    )
