"""Rates of a device from a calibration measured on one: the summary of `memcalc calibrate`.

The time formulas take the constants as they were fitted: a product is t0 + max(flops / P, bytes / W) or,
where that fitted better, their sum; attention has rates for each kernel, dtype and pass. Tiles, droop
and the like are in those constants and left out, unless the default's own formula, with its ceiling fitted
to the device, came nearer to the points (`shaped`). What a calibration lacks (a dtype the
device was not asked about, links of a run on one GPU) is filled from the default of the device's
architecture, scaled by what both have, and listed.

On a CPU the thread that launches a kernel also runs it: seconds of a launch are added to every kernel.
Checked by: unit/test_measured_rates.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

from memcalc.errors import ConfigError
from memcalc.inputs.hardware import Gpu
from memcalc.inputs.measured_attention import measured_attention
from memcalc.inputs.measured_links import measured_links
from memcalc.inputs.rate_figures import (
    DecodeRate,
    FewRows,
    GemmRate,
    MemoryRate,
    Rates,
    StepRate,
)
from memcalc.inputs.rates import rates_of

Row = Mapping[str, Any]
#: Exponents of the norm that joins compute and memory: a sum, and next to a maximum.
_EXPONENT: Final = {"sum": 1.0, "max": 16.0}
#: A rate that costs nothing: what it stands for is in another constant.
_FREE: Final = 1e24


class Measured(NamedTuple):
    """Rates of a calibration; filled: what is not in it, in words."""

    rates: Rates
    filled: tuple[str, ...]


def measured_rates(profile: Mapping[str, Any], gpu: Gpu) -> Measured:
    """The rates in a calibration profile, for a device.

    Raises ConfigError where the summary is not as `memcalc calibrate` writes it.
    """
    try:
        return _measured(profile, gpu)
    except (KeyError, TypeError, ValueError, ZeroDivisionError, IndexError) as error:
        said = f"{type(error).__name__}: {error}"
        raise ConfigError(
            f"calibration: {profile['name']}: summary: {said[:80]}; rule: as memcalc calibrate writes it"
        ) from None


def _measured(profile: Mapping[str, Any], gpu: Gpu) -> Measured:
    base = rates_of(gpu)
    summary: Mapping[str, Sequence[Row]] = profile["summary"]
    launch_s, eager_s = _launch(summary, base)
    serial = profile["device"]["type"] == "cpu"
    beside_s = launch_s if serial else 0.0
    filled: list[str] = [] if "launch" in summary else ["launches"]
    gemm = _gemms(summary.get("gemm", ()), base, (beside_s, eager_s), filled)
    memory = _memory(summary, base, (beside_s, eager_s), filled)
    found = replace(
        base,
        name=profile["name"],
        basis=f"measured on {profile['device']['name']}, torch {profile['torch']}, {profile['date']}",
        verified=True,
        gemm=gemm,
        attention=measured_attention(summary.get("attention", ()), base, beside_s, filled),
        memory=memory,
        launch_s=0.0 if serial else launch_s,
        optimizer=_optimizers(summary.get("optimizer", ())),
        kernels=_kernels(summary),
        links=measured_links(summary.get("collective", ()), base, filled),
        sum_residual=_residual(summary.get("residual", ()), base, filled),
    )
    if serial and summary.get("few_rows"):
        found = replace(found, generating=_generating(found, base, summary, eager_s))
    return Measured(found, tuple(filled))


def _generating(
    found: Rates, base: Rates, summary: Mapping[str, Sequence[Row]], eager_s: float
) -> Rates:
    """Rates of passes without gradients: their own launches, products of few rows, cached attention."""
    launches = [row["seconds"] for row in summary.get("launch_decode", ()) if row["seconds"] > 0]
    launch_s = sum(launches) / len(launches) if launches else eager_s
    pair = (launch_s, eager_s)
    few: dict[str, list[FewRows]] = {}
    for row in sorted(summary["few_rows"], key=lambda row: int(row["rows"])):
        own = few.setdefault(f"{row['name']} {row['dtype']}", [])
        own.append(
            FewRows(int(row["rows"]), _beside(row["t0_s"], pair), row.get("bytes_per_s", _FREE))
        )
    cached = {
        row["dtype"]: DecodeRate(
            row.get("bytes_per_s", _FREE), row.get("flops_per_s", _FREE),
            _beside(row["t0_s"], pair), 1.0, 0.0, 0.0, 0.0,
        )
        for row in summary.get("decode_attention", ())
    }  # fmt: skip
    return replace(
        found,
        gemm=_gemms(summary.get("gemm", ()), base, pair, []),
        attention=measured_attention(summary.get("attention", ()), base, launch_s, []),
        memory=_memory(summary, base, pair, []),
        few_rows={name: tuple(rows) for name, rows in few.items()},
        decode_by=cached,
        pass_residuals=_pass_residuals(summary.get("residual_decode", ())),
    )


def _pass_residuals(rows: Sequence[Row]) -> tuple[float, float]:
    """Of prompts' passes and of steps, the means of those measured; 1 where none was."""
    if not rows:
        return 1.0, 1.0
    prompt, step = (
        sum(float(row[name]) for row in rows) / len(rows) for name in ("prompt", "step")
    )
    return prompt, step


def _launch(summary: Mapping[str, Sequence[Row]], base: Rates) -> tuple[float, float]:
    """Seconds of one kernel's launch in an eager step, and of a bare tiny operation."""
    tiny = [row["seconds"] for row in summary.get("fixed", ())
            if row["what"] == "addition" and row["how"] == "eager"]  # fmt: skip
    launches = [row["seconds"] for row in summary.get("launch", ()) if row["seconds"] > 0]
    bare = tiny[0] if tiny else base.launch_s
    return (sum(launches) / len(launches) if launches else max(bare, base.launch_s)), bare


def _gemms(
    rows: Sequence[Row], base: Rates, launch: tuple[float, float], filled: list[str]
) -> dict[str, GemmRate]:
    """Rates by dtype; launch: seconds beside every kernel, and those of them a bare call has."""
    whole = {row["dtype"]: row for row in rows if row["part"] == "all" and row.get("flops_per_s")}
    found = {}
    scale = _scale(whole, base)
    for dtype, default in base.gemm.items():
        row = whole.get(dtype)
        if row is None:
            filled.append(f"products in {dtype}")
            found[dtype] = default._replace(flops_per_s=scale * default.flops_per_s)
            continue
        if _shape_is_better(row, base):
            own = row["shaped"]
            found[dtype] = default._replace(
                flops_per_s=own["flops_per_s"], dgrad=own["dgrad"], wgrad=own["wgrad"]
            )
            continue
        parts: dict[str, float] = {one["part"]: one["flops_per_s"] for one in rows
                                   if one["dtype"] == dtype and one.get("flops_per_s")}  # fmt: skip
        forward = parts.get("forward", float(row["flops_per_s"]))
        found[dtype] = GemmRate(
            flops_per_s=forward,
            bytes_per_s=row.get("bytes_per_s", _FREE),
            t0_s=_beside(row.get("t0_s", 0.0), launch),
            prologue_k=0.0,
            split_k=0.0,
            spread=1.0,
            padding=0.0,
            small_tile=1.0,
            droop=0.0,
            droop_s=1.0,
            exponent=_EXPONENT[row.get("form", "max")],
            cached_bytes=0.0,
            dgrad=forward / parts.get("dgrad", forward),
            wgrad=forward / parts.get("wgrad", forward),
            multiprocessors=1.0,
            operand_bytes=default.operand_bytes,
            result_bytes=default.result_bytes,
        )
    return found


def _shape_is_better(row: Row, base: Rates) -> bool:
    """Whether the default's formula, its ceiling fitted, is nearer to the points than t0, P and W."""
    shaped = row.get("shaped")
    if shaped is None or shaped["by"] != base.name:
        return False
    return bool(shaped["mean_relative_error"] < row.get("mean_relative_error", float("inf")))


def _beside(own_s: float, launch: tuple[float, float]) -> float:
    """A kernel's fixed cost with its launch, where those are paid one after the other."""
    launch_s, bare_s = launch
    return own_s if not launch_s else launch_s + max(0.0, own_s - bare_s)


def _scale(whole: Mapping[str, Row], base: Rates) -> float:
    """Measured over default of the products both have, one dtype: bf16 before others."""
    for dtype in ("bf16", *whole):
        if dtype in whole and dtype in base.gemm:
            return float(whole[dtype]["flops_per_s"]) / base.gemm[dtype].flops_per_s
    return 1.0


def _memory(
    summary: Mapping[str, Sequence[Row]],
    base: Rates,
    launch: tuple[float, float],
    filled: list[str],
) -> MemoryRate:
    rows = [row for row in summary.get("elementwise", ()) if row.get("bytes_per_s")]
    if not rows:
        filled.append("element-wise kernels")
        return base.memory._replace(t0_s=_beside(base.memory.t0_s, launch))
    return MemoryRate(rows[0]["bytes_per_s"], _beside(rows[0]["t0_s"], launch))


def _kernels(summary: Mapping[str, Sequence[Row]]) -> dict[str, float]:
    """bytes/s by "primitive dtype" of kernels that take longer than their bytes."""
    found = {
        f"{row['what']} {row['dtype']}": float(row["bytes_per_s"])
        for row in summary.get("kernel", ())
    }
    for row in summary.get("embedding_backward", ())[:1]:
        for dtype in ("bf16", "fp32"):  # zeros written, rows added: bytes are what counts
            found[f"embedding_dense_backward {dtype}"] = float(row["bytes_per_s"])
    return found


def _optimizers(rows: Sequence[Row]) -> dict[str, StepRate]:
    """By "adamw fused fp32" or "clip fp32"."""
    return {
        " ".join(str(row[key]) for key in ("what", "impl", "dtype") if key in row): StepRate(
            row["s_per_parameter"], row.get("s_per_tensor", 0.0)
        )
        for row in rows
    }


def _residual(rows: Sequence[Row], base: Rates, filled: list[str]) -> float:
    """Measured over predicted of whole steps, the mean of those it was found for; else the default's."""
    known = [row["step"] for row in rows if row.get("step", 0) > 0]
    if not known:
        filled.append("residual of whole steps")
        return base.sum_residual
    return float(sum(known) / len(known))
