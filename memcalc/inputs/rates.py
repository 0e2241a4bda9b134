"""Rates: what a device reaches of its datasheet, per kind of kernel and per link.

Default calibrations (`profiles/calibrations/default-<class>.toml`) state shares of a device's own
datasheet figures, so that one class of devices serves all of its kind; `rates_of` turns them into
FLOPs/s, bytes/s and seconds of one device. A `[gpu.<slug>]` table replaces figures of its class.
What the constants were fitted on and how far off they are is in each file and in docs/kernels.md.
Checked by: unit/test_rates.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

from memcalc.errors import ConfigError, unknown
from memcalc.inputs.constants import check_head
from memcalc.inputs.files import names_toml, shown, user_path
from memcalc.inputs.hardware import Gpu
from memcalc.inputs.profiles import profiles_dir, read_toml
from memcalc.inputs.rate_figures import (
    AttentionRate,
    Curve,
    DecodeRate,
    GemmRate,
    LinkRate,
    LinkRates,
    MemoryRate,
    Rates,
)

__all__ = [
    "AttentionRate", "Curve", "DecodeRate", "GemmRate", "LinkRate", "LinkRates", "MemoryRate",
    "Rates", "merged", "rates_from", "rates_of", "rescaled",
    "sustained",
]  # fmt: skip

SCHEMA: Final = 1
KIND: Final = "default-calibration"
DEFAULT: Final = "default"
#: Device architecture -> class of default calibrations.
CLASSES: Final = {
    "volta": "volta", "turing": "turing", "ampere": "ampere", "ada": "ada", "hopper": "hopper",
    "blackwell": "blackwell", "blackwell-ultra": "blackwell",
    "cdna2": "cdna", "cdna3": "cdna", "cdna4": "cdna", "cpu": "cpu",
}  # fmt: skip
#: Class of every other device: Gaudi, TPU, Apple.
OTHER: Final = "other"
#: dtype of a product -> (bytes of an operand, bytes of the result, peaks it may run at, best first).
PRODUCTS: Final[Mapping[str, tuple[int, int, tuple[str, ...]]]] = {
    "bf16": (2, 2, ("bf16", "fp32", "fp16")),
    "fp16": (2, 2, ("fp16", "bf16", "fp32")),
    "tf32": (4, 4, ("tf32", "fp32", "bf16")),
    "fp32": (4, 4, ("fp32", "bf16")),
    "fp8": (1, 2, ("fp8",)),
}
#: Figures of a calibration that may be 0; all others are above it.
MAY_BE_ZERO: Final = frozenset((
    "alone", "alpha_s", "cached_bytes", "chain_s", "droop", "launch_s", "overlap_slowdown", "padding",
    "prologue_k", "ramp", "row", "small_s", "large_s", "split_k", "spread", "t0_s",
))  # fmt: skip
#: Shares, and exponents of a norm: larger ones make no formula.
MOST: Final = {"padding": 1.0, "spread": 1.0, "exponent": 64.0}
#: Where a calibration states nothing of a dtype, it is as this one.
BASE_DTYPE: Final = "bf16"
COLLECTIVES: Final = ("all_gather", "reduce_scatter", "all_reduce", "all_to_all")


@lru_cache(maxsize=256)
def rates_of(gpu: Gpu, calibration: str = DEFAULT) -> Rates:
    """The rates of a device by a default calibration: "default", `default-hopper`, or a file's path.

    Raises ConfigError where there is none of that name, or a figure is missing or no number.
    """
    path = _path(gpu, calibration)
    return rates_from(gpu, read_toml(path), path.name)


def rates_from(gpu: Gpu, raw: Mapping[str, Any], where: str) -> Rates:
    """The rates of a device by a calibration's content, read from `where`."""
    if raw.get("kind") != KIND or raw.get("schema") != SCHEMA:
        raise ConfigError(
            f"calibration: {where}: got kind {raw.get('kind')!r}, schema {raw.get('schema')!r}; "
            f"rule: {KIND!r}, {SCHEMA}"
        )
    check_head(raw, f"calibration: {where}")
    own = raw.get("gpu")
    over = own.get(gpu.slug) if isinstance(own, Mapping) else None
    return _rates(_Reader(gpu, where, merged(raw, over) if isinstance(over, Mapping) else raw))


def sustained(rates: Rates) -> Rates:
    """The rates of products that run back to back for seconds: each has the droop of long ones.

    The kernels that defaults are fitted on ran in short bursts. Checked by: unit/test_rates.py.
    """
    gemm = {dtype: rate._replace(droop_s=0.0) for dtype, rate in rates.gemm.items()}
    return replace(rates, gemm=gemm)


def rescaled(link: LinkRate, factor: float) -> LinkRate:
    """The same link at `factor` times its datasheet rate: a cluster's own figure over the device's."""
    faster: dict[str, Any] = {
        kind: tuple(
            curve._replace(
                small_bytes_per_s=curve.small_bytes_per_s * factor,
                large_bytes_per_s=curve.large_bytes_per_s * factor,
            )
            for curve in getattr(link, kind)
        )
        for kind in COLLECTIVES
    }
    return link._replace(bus_bytes_per_s=link.bus_bytes_per_s * factor, **faster)


def _path(gpu: Gpu, calibration: str) -> Path:
    if names_toml(calibration):
        return user_path(calibration)
    folder = profiles_dir() / "calibrations"
    wanted = calibration
    if calibration == DEFAULT:
        wanted = f"{DEFAULT}-{CLASSES.get(gpu.architecture, OTHER)}"
    path = folder / f"{wanted}.toml"
    if "/" in wanted or not path.is_file():
        known = sorted(path.stem for path in folder.glob(f"{DEFAULT}-*.toml"))
        raise unknown("calibration", calibration, [DEFAULT, *known])
    return path


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over`, tables merged key by key."""
    found = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(found.get(key), Mapping)
        found[key] = merged(found[key], value) if both else value
    return found


#: Attention kernels before FlashAttention-2, their rate over its own, forward and backward. It is about
#: twice as fast as FlashAttention; than its Triton version 1.3 to 1.5 times forward, about twice backward
#: (Dao 2023, arXiv:2307.08691, sec. 4.1, on A100; elsewhere assumed).
OLDER_KERNELS: Final = {"flash1": (1 / 2, 1 / 2), "triton": (1 / 1.4, 1 / 2)}


class _Reader(NamedTuple):
    """A calibration's tables and numbers; what is missing or none raises ConfigError in one line."""

    gpu: Gpu
    where: str
    raw: Mapping[str, Any]

    def table(self, name: str) -> Mapping[str, Any]:
        found: Any = self.raw
        for part in name.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
        if not isinstance(found, Mapping):
            raise ConfigError(f"calibration: {self.where}: {name}: got {found!r}; rule: a table")
        return found

    def number(self, table: Mapping[str, Any], key: str, name: str = "") -> float:
        value: Any = table.get(key)
        is_number = type(value) in (int, float) and 0 <= value < 1e30
        most = MOST.get(key, 1e30)
        if is_number and value > most:
            what = f"{name}.{key}".lstrip(".")
            raise ConfigError(
                f"calibration: {self.where}: {what}: got {shown(value)}; rule: at most {most:g}"
            )
        if not is_number or (value == 0 and key not in MAY_BE_ZERO):
            rule = "a number from 0" if key in MAY_BE_ZERO else "a number above 0"
            what = f"{name}.{key}".lstrip(".")
            raise ConfigError(
                f"calibration: {self.where}: {what}: got {shown(value)}; rule: {rule}"
            )
        return float(value)

    def of(self, name: str, *keys: str) -> list[float]:
        table = self.table(name)
        return [self.number(table, key, name) for key in keys]

    def peak(self, dtypes: tuple[str, ...]) -> float:
        """The best datasheet rate among these; 0 where the device has none."""
        peaks = self.gpu.peak_flops_per_s
        return next((peaks[dtype] for dtype in dtypes if dtype in peaks), 0.0)


def _rates(reader: _Reader) -> Rates:
    raw, gpu = reader.raw, reader.gpu
    bandwidth = gpu.memory_bandwidth_bytes_per_s
    half = reader.peak(("bf16", "fp16", "fp32"))
    share, flops_share, *rest = reader.of(
        "decode", "memory_share", "share", *DecodeRate._fields[2:]
    )
    memory_share, memory_t0_s = reader.of("memory", "share", "t0_s")
    fitted = gpu.slug in raw.get("fitted_on", ())
    basis = str(raw.get("basis", ""))
    return Rates(
        name=str(raw.get("name", reader.where)),
        architecture=gpu.architecture,
        basis=basis if fitted else f"{basis}; scaled by this device's datasheet",
        verified=fitted and raw.get("verified") is True,
        gemm=_gemms(reader),
        attention=_attentions(reader, half),
        decode=DecodeRate(share * bandwidth, flops_share * half, *rest),
        memory=MemoryRate(memory_share * bandwidth, memory_t0_s),
        launch_s=reader.number(raw, "launch_s"),
        links=LinkRates(
            link=_link(reader, gpu.link_unidirectional_bytes_per_s, _link_table(gpu)),
            network=_link(reader, gpu.nic_bytes_per_s, "network"),
            pcie=_link(reader, gpu.pcie_bytes_per_s, "pcie"),
            host=_link(reader, gpu.pcie_bytes_per_s, "host"),
        ),
        overlap_slowdown=reader.number(raw, "overlap_slowdown"),
        sum_residual=reader.number(raw, "sum_residual") if "sum_residual" in raw else 1.0,
    )


def _gemms(reader: _Reader) -> dict[str, GemmRate]:
    base = reader.table(f"gemm.{BASE_DTYPE}")
    found = {}
    for dtype, (operand, result, peaks) in PRODUCTS.items():
        at = next((peak for peak in peaks if peak in reader.gpu.peak_flops_per_s), None)
        if at is None:
            continue
        peak = reader.gpu.peak_flops_per_s[at]
        # a dtype without units of its own runs as the one whose units it takes
        stated = "fp32" if peak == reader.gpu.peak_flops_per_s.get("fp32") else at
        own = reader.table(f"gemm.{stated}") if stated in reader.table("gemm") else {}
        table = {**base, **own}
        figures = [reader.number(table, key, f"gemm.{stated}") for key in GemmRate._fields[2:14]]
        share, memory_share = (
            reader.number(table, key, f"gemm.{stated}") for key in ("share", "memory_share")
        )
        sms = reader.number(reader.raw, "multiprocessors")
        ceiling = share * peak, memory_share * reader.gpu.memory_bandwidth_bytes_per_s
        found[dtype] = GemmRate._make((*ceiling, *figures, sms, operand, result))
    return found


def _attentions(reader: _Reader, peak: float) -> dict[str, AttentionRate]:
    """The kernels of a calibration, and older ones as shares of flash where it does not state them."""
    found = {kernel: _attention(reader, kernel, peak) for kernel in reader.table("attention")}
    flash = found.get("flash")
    for kernel, (forward, backward) in OLDER_KERNELS.items():
        if flash is not None and kernel not in found:
            found[kernel] = flash._replace(
                forward_flops_per_s=forward * flash.forward_flops_per_s,
                backward=backward / forward * flash.backward,
            )
    return found


def _attention(reader: _Reader, kernel: str, peak: float) -> AttentionRate:
    name = f"attention.{kernel}"
    share, memory_share = reader.of(name, "share", "memory_share")
    ceiling = share * peak, memory_share * reader.gpu.memory_bandwidth_bytes_per_s
    figures = reader.of(name, *AttentionRate._fields[2:8])
    return AttentionRate._make((*ceiling, *figures, reader.number(reader.raw, "multiprocessors")))


def _link_table(gpu: Gpu) -> str:
    """Which table a device's own link follows: cards without any reach their peers over PCIe."""
    return "pcie" if (gpu.link or "").lower().startswith("pcie") else "link"


def _link(reader: _Reader, bytes_per_s: float | None, name: str) -> LinkRate | None:
    if not bytes_per_s:
        return None
    alpha_s, share = reader.of(name, "alpha_s", "share")
    curves = {kind: _curves(reader, bytes_per_s, name, kind) for kind in COLLECTIVES}
    return LinkRate(alpha_s, share * bytes_per_s, **curves)


def _curves(reader: _Reader, bytes_per_s: float, name: str, kind: str) -> tuple[Curve, ...]:
    rows = reader.table(name).get(kind, [])
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise ConfigError(
            f"calibration: {reader.where}: {name}.{kind}: got {rows!r:.40}; rule: a list of tables"
        )
    found = []
    for row in rows:
        ranks, small_s, small, large_s, large = (
            reader.number(row, key, f"{name}.{kind}")
            for key in ("ranks", "small_s", "small_share", "large_s", "large_share")
        )
        found.append(Curve(int(ranks), small_s, small * bytes_per_s, large_s, large * bytes_per_s))
    return tuple(sorted(found))
