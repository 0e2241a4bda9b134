"""Fitted constants of matrix products: t0, FLOPs/s and bytes/s by dtype, FLOPs/s by part.

Two forms are fitted and the better one kept, by the mean error of the points: on a GPU, whose other
warps compute while some wait for memory, t0 + max(flops / P, bytes / W) ("max"); one thread of a CPU
waits itself, t0 + flops / P + bytes / W ("sum").
No torch. Checked by: harness/test_calibration_summary.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from memcalc.harness.calibration.calibration_fit import Fit, Work, linear, roofline
from memcalc.harness.calibration.summary_rows import (
    Row,
    copy_bytes_per_s,
    groups,
    of_kind,
    rate,
    single,
)

PARTS = ("forward", "dgrad", "wgrad")
MAX, SUM = "max", "sum"
#: Products of one dtype that are enough to fit three constants.
_ENOUGH = 6


def gemms(points: Sequence[Row]) -> list[Row]:
    """t0, P and W by dtype over all products, then P by part with the same t0 and W.

    The products of the fixed costs belong to the fit: tiny ones show t0, skinny ones W. A dtype with
    few products takes form, t0 and W from the first one, and only P is its own (`t0_from`).
    """
    found: list[Row] = []
    first: tuple[str, str, Fit] | None = None
    for (dtype,), group in groups(of_kind(points, "gemm"), "dtype").items():
        if len(group) < _ENOUGH and first is not None:
            row = _gemm_row(dtype, "all", first[1], _ceiling_alone(group, *first[1:]))
            row |= single(group[0]) if len(group) == 1 else {}
            found.append({**row, "t0_from": first[0]})
            continue
        extra = [p for p in of_kind(points, "fixed", dtype=dtype) if _in_fit(p, points)]
        guess = copy_bytes_per_s(points) or max(p["bytes_per_s"] for p in group)
        form, fit = _better(_work([*group, *extra]), guess)
        first = first or (dtype, form, fit)
        found.append(_gemm_row(dtype, "all", form, fit))
        for part in PARTS:
            own = [p for p in group if p["part"] == part and _by_flops(p, form, fit)]
            if len(own) > 1:
                found.append(_gemm_row(dtype, part, form, _ceiling_alone(own, form, fit)))
    return found


def _better(points: Sequence[Work], guess: float) -> tuple[str, Fit]:
    """The form with the smaller mean error, and its fit; the maximum where both are equal."""
    forms = {MAX: roofline(points, guess)}
    terms = [(1.0, p.flops, p.bytes) for p in points]
    forms[SUM] = linear(terms, [p.seconds for p in points])
    name = min(forms, key=lambda form: forms[form].mean_relative_error)
    return name, forms[name]


def _by_flops(point: Row, form: str, fit: Fit) -> bool:
    """Whether arithmetic, not memory, bounds this product; in a sum it always takes part."""
    _, flop_s, byte_s = fit.coefficients
    return form == SUM or bool(point["flops"] * flop_s >= point["bytes"] * byte_s)


def _in_fit(point: Row, points: Sequence[Row]) -> bool:
    """In graphs where there are any; else the eager ones, which is all a CPU has."""
    fixed = of_kind(points, "fixed")
    has_graphs = any(p.get("how") == "graph" and "flops" in p for p in fixed)
    return "flops" in point and point["how"] == ("graph" if has_graphs else "eager")


def _work(points: Iterable[Row]) -> list[Work]:
    return [Work(p["flops"], p["bytes"], p["median_s"]) for p in points]


def _ceiling_alone(points: Sequence[Row], form: str, whole: Fit) -> Fit:
    """P alone, with t0 and W of another fit."""
    t0, _, byte_s = whole.coefficients
    known = [t0 + (p["bytes"] * byte_s if form == SUM else 0.0) for p in points]
    fit = linear([(p["flops"],) for p in points], [p["median_s"] for p in points], known)
    return fit._replace(coefficients=(t0, fit.coefficients[0], byte_s))


def _gemm_row(dtype: str, part: str, form: str, fit: Fit) -> Row:
    t0, flop_s, byte_s = fit.coefficients
    row: Row = {"dtype": dtype, "part": part, "form": form, "t0_s": t0}
    return {**row, **rate("bytes_per_s", byte_s), **rate("flops_per_s", flop_s), **fit.errors()}
