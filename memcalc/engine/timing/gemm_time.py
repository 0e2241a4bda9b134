"""Seconds of matrix products: plain, batched, and grouped by experts.

A product of (m, k) by (k, n) is cut into square tiles of the result, one multiprocessor (SM) each:

    tiles  = batch ceil(m / side) ceil(n / side)           waves = tiles / SMs
    area   = mean rows * columns paid of a tile; of the ragged ones a share `padding` of what is empty
    length = k in every wave, counting ceil(waves) of them, or waves themselves by a share `spread`;
             less than one wave: idle SMs take part of k, but no stretch below `split_k`
    alone  = 2 area SMs (length + prologue_k max(waves, 1)) / P      the lesser of sides 128 and 64
    product = alone (1 + droop alone / (alone + droop_s))            power and heat of long ones
    memory = bytes / W; products whose operands fit the cache do not pay it
    seconds = t0 + ((product / left)^e + memory^e)^(1/e)   left: by the alignment of rows, alignment.py

P, W and the rest are the calibration's (inputs/rates.py). More of P or W is never slower.
Constants, what they were fitted on and errors: docs/kernels.md. Checked by: unit/test_kernel_times.py.
"""

from __future__ import annotations

from typing import Final

from memcalc.engine.dtypes import ITEMSIZE
from memcalc.engine.timing.alignment import CUBLAS, PARTS, VECTOR, share_left
from memcalc.engine.timing.arith import Num, extremes, maximum, minimum
from memcalc.errors import ConfigError, unknown
from memcalc.inputs.rates import GemmRate, Rates

#: Sides of the tiles a library chooses between.
LARGE_TILE: Final = 128
SMALL_TILE: Final = 64


def gemm_s(rates: Rates, dtype: str, *shape: Num, part: str = "forward") -> Num:
    """Seconds of `batch` products of (m, k) by (k, n): gemm_s(rates, "bf16", batch, m, n, k).

    part: forward | dgrad | wgrad, by keyword. Raises ConfigError where a device has no such products.
    """
    rate = _rate(rates, dtype)
    left: Num = 1.0
    if rates.architecture in CUBLAS and dtype not in VECTOR:
        left = share_left(rate.operand_bytes, part, *shape)
    seconds = product_s(rate, *shape, left=left)
    if part == "forward":
        return seconds
    if part not in PARTS:
        raise unknown("part of a product", part, PARTS)
    return seconds * (rate.dgrad if part == "dgrad" else rate.wgrad)


def few_rows_s(rates: Rates, name: str, dtype: str, shape: tuple[float, ...]) -> float | None:
    """Seconds of `batch` products of few rows, shape (batch, m, n, k), by rates measured at such numbers.

    Between two numbers of rows seconds are linear in them. None where nothing was measured, or only for
    fewer rows.
    """
    known = rates.few_rows.get(f"{'bmm' if name == 'bmm' else 'linear'} {dtype}", ())
    batch, m, n, k = shape
    above = next((one for one in known if one.rows >= m), None)
    if above is None:
        return None
    read = batch * n * k * ITEMSIZE[dtype]
    seconds = above.t0_s + read / above.bytes_per_s
    below = [one for one in known if one.rows < m]
    if not below or above.rows == m:
        return seconds
    under = below[-1].t0_s + read / below[-1].bytes_per_s
    share = (m - below[-1].rows) / (above.rows - below[-1].rows)
    return under + share * (seconds - under)


def grouped_s(rates: Rates, dtype: str, groups: Num, rows: Num, n: Num, k: Num) -> Num:
    """Seconds of one grouped product: `rows` in all, evenly over `groups` weights (n, k).

    Not counted: experts that get more rows than others.
    """
    used = minimum(groups, maximum(rows, 1))
    return product_s(_rate(rates, dtype), used, rows / used, n, k)


def gemm_bound(rates: Rates, dtype: str, *shape: Num) -> str:
    """What limits a product: "compute", "bandwidth" or "latency"; plain numbers only."""
    rate = _rate(rates, dtype)
    compute, memory = compute_s(rate, *shape), memory_s(rate, *shape)
    if compute + memory < rate.t0_s:
        return "latency"
    return "compute" if compute >= memory else "bandwidth"


def product_s(rate: GemmRate, batch: Num, m: Num, n: Num, k: Num, *, left: Num = 1.0) -> Num:
    """Seconds of a product at one rate, of which alignment leaves the share `left` (alignment.py)."""
    compute = compute_s(rate, batch, m, n, k) / left
    return _together_s(rate, compute, memory_s(rate, batch, m, n, k))


def packed_product_s(rate: GemmRate, shape: tuple[Num, ...], spared: Num) -> Num:
    """As product_s, of (batch, m, n, k), where `spared` bytes need not be moved: an operand is stored in
    fewer bits."""
    memory = memory_s(rate, *shape) - spared / rate.bytes_per_s
    return _together_s(rate, compute_s(rate, *shape), maximum(memory, 0))


def _together_s(rate: GemmRate, compute: Num, memory: Num) -> Num:
    both = compute**rate.exponent + memory**rate.exponent
    return rate.t0_s + both ** (1 / rate.exponent)


def compute_s(rate: GemmRate, batch: Num, m: Num, n: Num, k: Num) -> Num:
    """Seconds of the multiplications alone, by the tile size that serves better."""
    least, most = extremes(batch * m * n * k)
    sms, padding, spread, prologue = (
        rate.multiprocessors,
        rate.padding,
        rate.spread,
        rate.prologue_k,
    )
    not_shared = most(k - rate.split_k, 0)

    def tiled(side: int) -> Num:
        """Columns of k times the area that all multiprocessors go through."""
        rows, columns = -(-m // side), -(-n // side)
        paid = padding * side
        area = (paid + (1 - padding) * m / rows) * (paid + (1 - padding) * n / columns)
        waves = batch * rows * columns / sms
        whole = most(waves, 1)
        turns = spread * whole - (1 - spread) * (-whole // 1)
        return area * (turns * (k + prologue) - (1 - least(waves, 1)) * not_shared)

    work = least(tiled(LARGE_TILE), tiled(SMALL_TILE) * rate.small_tile)
    alone = 2 * sms * work / rate.flops_per_s
    return alone * (1 + rate.droop * alone / (alone + rate.droop_s))


def memory_s(rate: GemmRate, batch: Num, m: Num, n: Num, k: Num) -> Num:
    """Seconds to move operands and result once; next to none where all of it stays in the cache."""
    moved = batch * (rate.operand_bytes * k * (m + n) + rate.result_bytes * m * n)
    seconds = moved / rate.bytes_per_s
    if not rate.cached_bytes:
        return seconds
    outside = (moved / rate.cached_bytes) ** 4
    return seconds * outside / (1 + outside)


def _rate(rates: Rates, dtype: str) -> GemmRate:
    rate = rates.gemm.get(dtype)
    if rate is None and dtype == "int8":
        rate = rates.gemm.get("fp16")  # LLM.int8 is no faster than 16 bits; not measured here
    if rate is None:
        raise ConfigError(
            f"{rates.name}: products in {dtype}: got none on this device; "
            f"valid: {', '.join(rates.gemm)}"
        )
    return rate
