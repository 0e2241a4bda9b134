"""Fitted constants of generating: products of few rows, attention over a cache, launches without gradients.

A product of so many rows takes t0 + bytes / W of the weight, each number of rows with constants of its own;
attention over a cache t0 + bytes / W + FLOPs / P, for it reads keys once and computes for every query
head. Whole generations are what all of it is checked by.
No torch. Checked by: harness/test_calibration_summary.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from memcalc.harness.calibration.calibration_fit import linear
from memcalc.harness.calibration.summary_rows import Row, groups, of_kind, rate, single


def few_rows(points: Sequence[Row]) -> list[Row]:
    """By kind of product, dtype and number of rows."""
    found = []
    names = ("name", "dtype", "rows")
    for key, group in groups(of_kind(points, "few_rows"), *names).items():
        fit = linear([(1.0, p["bytes"]) for p in group], [p["median_s"] for p in group])
        t0, byte_s = fit.coefficients
        row = {**dict(zip(names, key, strict=True)), "t0_s": t0, **rate("bytes_per_s", byte_s)}
        found.append({**row, **(fit.errors() if len(group) > 1 else single(group[0]))})
    return found


def cached_attention(points: Sequence[Row]) -> list[Row]:
    """By dtype."""
    found = []
    for (dtype,), group in groups(of_kind(points, "decode_attention"), "dtype").items():
        terms = [(1.0, p["bytes"], p["flops"]) for p in group]
        fit = linear(terms, [p["median_s"] for p in group])
        t0, byte_s, flop_s = fit.coefficients
        row: Row = {"dtype": dtype, "t0_s": t0}
        row |= {**rate("bytes_per_s", byte_s), **rate("flops_per_s", flop_s)}
        found.append({**row, **(fit.errors() if len(group) > 1 else single(group[0]))})
    return found


def generations(points: Sequence[Row]) -> list[Row]:
    """Seconds of the prompts' pass and of a step."""
    names = ("model", "precision", "attention")
    return [
        {**{name: p[name] for name in names}, "prompt_s": p["prompt_s"], "step_s": p["median_s"],
         **single(p)}
        for p in of_kind(points, "generation")
    ]  # fmt: skip
