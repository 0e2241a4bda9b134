"""Fits of one kind of kernel: which constants are searched, from where, and what a plain fit gets.

A fit takes tables (one, or those of a whole class together) and a calibration's content, and gives the
tables of it that change. Constants with priors of the class start from what the calibration says.
Only rows that are sound and not held out are fitted on. Checked by: unit/test_kernels_benchmark.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from benchmarks.kernel_fit.predict import TABLE_KERNEL, predicted
from benchmarks.kernel_fit.solver import Constant, solve
from benchmarks.kernel_fit.tables import Table
from memcalc.engine.timing.collective_time import wire_bytes
from memcalc.inputs.rates import merged, rates_from

#: Constants of products in 16 bits; t0_s and droop_s in s, prologue_k and split_k in columns of k.
GEMM: Final = {
    "share": Constant(0.8, True), "memory_share": Constant(0.82, True), "t0_s": Constant(3e-6),
    "prologue_k": Constant(100.0), "split_k": Constant(2000.0), "spread": Constant(0.7, True),
    "padding": Constant(0.5, True), "small_tile": Constant(1.25), "droop": Constant(0.15, True),
    "droop_s": Constant(1.5e-3), "exponent": Constant(3.0),
}  # fmt: skip
#: Systems whose benchmark found small operands in the cache: bytes that stay there.
CACHED: Final = {"l40s": Constant(16e6)}
ATTENTION: Final = {
    "share": Constant(0.65, True), "memory_share": Constant(0.5, True), "t0_s": Constant(12e-6),
    "ramp": Constant(200.0), "row": Constant(0.5),
}  # fmt: skip
#: Relative ceilings of other head widths, of a whole class, fitted where it has so many rows of them.
WIDTHS: Final = {"narrow": (64, Constant(0.7)), "wide": (256, Constant(1.0))}
FEWEST_OF_WIDTH: Final = 40
DECODE: Final = {
    "memory_share": Constant(0.85, True), "share": Constant(0.5, True), "t0_s": Constant(11e-6),
    "exponent": Constant(1.5), "chain_s": Constant(3e-11), "spread": Constant(0.03, True),
    "alone": Constant(0.1, True),
}  # fmt: skip
#: Nothing gets more of a datasheet's figure.
HIGHEST_SHARE: Final = 0.98
#: Fewest rows that a fit is made of.
FEWEST: Final = 12


def fit_tables(
    tables: Sequence[Table], raw: Mapping[str, Any], is_class: bool = True
) -> dict[str, Any]:
    """The part of a calibration that these tables, of one form and word, say: nested TOML tables.

    is_class: the tables are all of a class, not one system's among several.
    """
    used = [table.part(table.is_sound() & ~table.is_held_out()) for table in tables]
    form, word = used[0].form, used[0].word
    constants, path = {
        "gemm": (GEMM, ("gemm", word)),
        "attention": (ATTENTION, ("attention", TABLE_KERNEL)),
        "decode": (DECODE, ("decode",)),
    }[form]
    if form == "gemm" and all(table.system in CACHED for table in used):
        constants = {**constants, "cached_bytes": CACHED[used[0].system]}

    if form == "attention" and is_class:
        constants = {**constants, **_widths(used)}

    def off(found: Mapping[str, float]) -> np.ndarray:
        trial = merged(raw, _nested(path, found))
        rates = {t.gpu.slug: rates_from(t.gpu, trial, "fit") for t in used}
        return np.concatenate([np.log(predicted(t, rates[t.gpu.slug]) / t.seconds) for t in used])

    found = solve(constants, off)
    # seconds are scaled so that the mean relative error of the fitted rows is 0
    scale = float(np.exp(off(found)).mean())
    for name in found:
        if name in ("share", "memory_share"):
            found[name] = min(HIGHEST_SHARE, found[name] * scale)
        elif name in ("t0_s", "droop_s", "chain_s"):
            found[name] /= scale
    return _nested(path, {name: _rounded(value) for name, value in found.items()})


def _widths(tables: Sequence[Table]) -> dict[str, Constant]:
    """Constants of the head widths that the tables have enough rows of."""
    widths = np.concatenate([table.sizes["head_dim"] for table in tables])
    return {
        name: constant
        for name, (width, constant) in WIDTHS.items()
        if (widths == width).sum() >= FEWEST_OF_WIDTH
    }


def fit_curve(tables: Sequence[Table], ranks: int) -> dict[str, float]:
    """The two lines of a collective among so many ranks, as shares of the systems' link rates."""
    wire, rate, seconds = [], [], []
    for table in tables:
        rows = (table.sizes["num_gpus"] == ranks) & ~table.is_held_out()
        wire.append(wire_bytes(table.word, table.sizes["message_bytes"][rows], ranks))
        rate.append(np.full(rows.sum(), _link_bytes_per_s(table)))
        seconds.append(table.seconds[rows])
    sent, link, measured = map(np.concatenate, (wire, rate, seconds))
    alone = sent / link
    best, found = np.inf, {}
    for break_at in np.unique(alone)[2:-2]:
        trial = solve(_two_lines(alone, measured, break_at), _off(alone, measured))
        cost = float(np.abs(_off(alone, measured)(trial)).mean())
        if cost < best:
            best, found = cost, trial
    scale = float(np.exp(_off(alone, measured)(found)).mean())
    for name in found:
        found[name] *= scale if name.endswith("_share") else 1 / scale
    return {"ranks": ranks} | {name: _rounded(value) for name, value in found.items()}


def _off(alone: np.ndarray, measured: np.ndarray) -> Callable[[Mapping[str, float]], np.ndarray]:
    def off(c: Mapping[str, float]) -> np.ndarray:
        small = c["small_s"] + alone / c["small_share"]
        large = c["large_s"] + alone / c["large_share"]
        return np.log(np.minimum(small, large) / measured)

    return off


def _two_lines(alone: np.ndarray, measured: np.ndarray, break_at: float) -> dict[str, Constant]:
    """Starts: a line through the messages below a size, and one through those from it on."""
    found = {}
    for name, rows in (("small", alone < break_at), ("large", alone >= break_at)):
        matrix = np.stack([np.ones(rows.sum()), alone[rows]], 1) / measured[rows, None]
        seconds, slope = np.linalg.lstsq(matrix, np.ones(rows.sum()))[0]
        found[f"{name}_s"] = Constant(max(float(seconds), float(measured.min())))
        found[f"{name}_share"] = Constant(1 / max(float(slope), 1e-3))
    return found


def _link_bytes_per_s(table: Table) -> float:
    own = table.gpu.link_unidirectional_bytes_per_s
    if not own:
        raise ValueError(f"{table.system}: no link")
    return own


def plain(table: Table) -> np.ndarray:
    """Seconds of every row by the fit that a reader would try first, on the same fitted rows.

    Products and decode: t0 + max(FLOPs / P, bytes / W) and t0 + bytes / W. Attention: log-linear in all
    columns. Collectives: alpha + wire bytes / bandwidth, by number of ranks.
    """
    rows = table.is_sound() & ~table.is_held_out()
    if table.form == "attention":
        columns = [np.ones_like(table.seconds), *(np.log(v) for v in table.sizes.values())]
        matrix = np.stack(columns, 1)
        return np.exp(matrix @ np.linalg.lstsq(matrix[rows], np.log(table.seconds[rows]))[0])
    if table.form == "collectives":
        found = np.empty_like(table.seconds)
        for ranks in np.unique(table.sizes["num_gpus"]):
            of = table.sizes["num_gpus"] == ranks
            wire = wire_bytes(table.word, table.sizes["message_bytes"], int(ranks))
            found[of] = _roofline(table.part(of), wire[of], 0 * wire[of], rows[of])
        return found
    s, flops = table.sizes, table.flops()
    if table.form == "decode":
        return _roofline(table, table.cache_bytes(), 0 * flops, rows)
    operand = 1 if table.word == "fp8" else 2
    moved = operand * s["k"] * (s["m"] + s["n"]) + 2 * s["m"] * s["n"]
    return _roofline(table, moved, flops, rows)


def _roofline(table: Table, moved: np.ndarray, flops: np.ndarray, rows: np.ndarray) -> np.ndarray:
    def seconds(c: Mapping[str, float]) -> np.ndarray:
        return c["t0"] + np.maximum(flops / c.get("P", 1e30), moved / c["W"])

    measured = table.seconds
    constants = {
        "t0": Constant(float(measured.min())), "W": Constant(float((moved / measured).max())),
    }  # fmt: skip
    if flops.any():
        constants["P"] = Constant(float((flops / measured).max()))
    found = solve(constants, lambda c: np.log(seconds(c)[rows] / measured[rows]))
    return seconds(found)


def _nested(path: Sequence[str], values: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = dict(values)
    for key in reversed(path):
        found = {key: found}
    return found


def _rounded(value: float) -> float:
    """Four significant digits: constants are not known better."""
    return float(f"{value:.4g}")
