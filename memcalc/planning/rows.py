"""Rows: a point as one flat record, the form that tables, sweeps and scaling charts share.

Bytes and seconds, exact; null where a number is unknown or the case was refused. Names are a contract:
add, never rename. Checked by: unit/test_cases.py.
"""

from __future__ import annotations

from typing import Any

from memcalc.planning.cases import Case, Point
from memcalc.planning.train_time import gpus_of, price_of

_HOUR = 3600.0
_MILLION = 1e6
#: What a row says of reserved bytes that come from a replay of its own.
SIMULATED = "simulated"
MEMORY = (
    "peak_requested_bytes", "peak_allocated_bytes", "peak_reserved_bytes", "device_used_bytes",
    "usable_bytes", "headroom_bytes", "host_bytes", "low_bytes", "high_bytes",
)  # fmt: skip
TIME = (
    "step_s", "low_s", "high_s", "tokens_per_s", "tokens_per_s_per_gpu", "mfu", "mfu_causal", "hfu",
    "bound",
)  # fmt: skip
#: Every key of a row, in order.
KEYS = (
    "labels", "command", "model", "gpu", "gpus", "fits", "verdict", *MEMORY, *TIME,
    "usd_per_million_tokens", "reason", "calibration", "reserved", "note", "band",
)  # fmt: skip


def row_of(point: Point, price: float | None = None) -> dict[str, Any]:
    """The flat row of a point: KEYS, None where unknown.

    price: USD per GPU-hour; without it the GPU profile's dated range, if it has one.
    usd_per_million_tokens is the middle of the range over tokens/s. reserved: how reserved bytes are
    known, `simulated` or the ratio they were made with (planning/quick.py); note: what else there is to
    say of a row's verdict.
    """
    row = blank_row(point)
    result = point.result
    if result is None:
        return row
    memory, time = result.memory, result.time
    row.update((name, getattr(memory, name)) for name in MEMORY)
    row.update((name, getattr(time, name)) for name in TIME)
    row["gpus"] = gpus_of(result)
    row["fits"], row["verdict"] = result.fits, result.verdict
    row["usd_per_million_tokens"] = cost_of(point, time.tokens_per_s, row["gpus"], price)
    row["calibration"], row["band"] = time.calibration, time.band
    row["reserved"] = None if memory.peak_reserved_bytes is None else SIMULATED
    return row


def blank_row(point: Point) -> dict[str, Any]:
    """What is known of a point before anything is computed: labels, command, model, GPU, reason."""
    row: dict[str, Any] = dict.fromkeys(KEYS)
    case = point.case
    row["labels"], row["command"], row["reason"] = dict(case.labels), case.command, point.reason
    if isinstance(case, Case):
        gpu = case.device.gpu
        row["model"], row["gpu"] = case.model, None if gpu is None else gpu.slug
    return row


def cost_of(
    point: Point, tokens_per_s: float | None, gpus: int, stated: float | None
) -> float | None:
    """USD per million tokens of all GPUs, at the middle of the price range; None without a price."""
    if not tokens_per_s or not isinstance(point.case, Case):
        return None
    price = price_of(point.case.device.gpu, stated)
    if price is None:
        return None
    return (price.low + price.high) / 2 * gpus / _HOUR / tokens_per_s * _MILLION
