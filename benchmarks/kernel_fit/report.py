"""Errors of kernel times as a page: one row a system, kernel and class of sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from benchmarks.kernel_fit.predict import LARGE_TEXT
from memcalc.output.console import Page

#: Names of kernels that fit a column.
SHORT: Final = {
    "all_gather": "all-gather", "all_reduce": "all-reduce", "reduce_scatter": "red.-scat.",
    "all_to_all": "all-to-all",
}  # fmt: skip


def error_page(page: Page, rows: Sequence[dict[str, Any]], other: str = "") -> None:
    """Write the rows of `predict.scored` or of a calibration's errors; other: key of one more share."""
    heads = ["system", "kernel", "sizes", ">n", ">error", ">bias", ">p90"]
    heads += [f">{other.partition('_')[0]}"] if other else []
    page.table(heads, [_cells(row, other) for row in rows])
    page.line(
        "error: mean of |predicted / measured - 1|; bias: with its sign; p90: nine in ten below"
    )
    page.line(LARGE_TEXT)


def _cells(row: dict[str, Any], other: str) -> list[str]:
    kernel = row.get("what") or row["form"]
    kernel = f"gemm {kernel}" if row["form"] == "gemm" else SHORT.get(kernel, kernel)
    cells = [row["system"].replace("_server", ""), kernel, row["sizes"], f"{row['n']:,}"]
    cells += [_share(row["mean_abs"]), f"{100 * row['bias']:+.1f} %", _share(row["p90"])]
    return cells + ([_share(row[other])] if other else [])


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"
