"""Utilisation as text: the ratios stated figures give, and each convention's share by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memcalc.engine.words import layout_line
from memcalc.output.console import Page
from memcalc.units import count_text, si


def mfu_page(page: Page, found: Mapping[str, Any]) -> None:
    """The parts that were asked for, and where the third method is."""
    if found["by_model"] is not None:
        _title(page, found["by_model"])
    if (peak := found["peak"]) is not None:
        page.line(f"peak: {si(peak['flops_per_s'], 'FLOP/s')} a GPU ({peak['source']})")
    if (ratio := found["flops_ratio"]) is not None:
        measured = si(ratio["flops_per_s"], "FLOP/s")
        page.line(f"FLOPs ratio: {measured} measured, {ratio['ratio']:.2%} of the peak", "bold")
    if (rate := found["throughput"]) is not None:
        _throughput(page, rate)
    if found["by_model"] is not None:
        page.line()
        _conventions(page, found["by_model"]["conventions"])
    page.line("percentages are rounded, not cut")
    page.line(found["profile_method"])


def quiet_line(found: Mapping[str, Any]) -> str:
    """Every ratio in one line, as shares; `none` is unknown or not asked for."""
    parts = {
        "flops_ratio": (found["flops_ratio"] or {}).get("ratio"),
        "throughput_ratio": (found["throughput"] or {}).get("ratio"),
        **{name: (found["by_model"] or {}).get(name) for name in ("mfu", "mfu_causal", "hfu")},
    }
    return " ".join(
        f"{name} {'none' if value is None else format(value, '.6g')}"
        for name, value in parts.items()
    )


def _title(page: Page, found: Mapping[str, Any]) -> None:
    model, setup = found["model"], found["setup"]
    page.line(f"{model['name']}: {count_text(model['parameters'])} parameters", "bold")
    page.line(
        f"seq {setup['seq_len']}, global batch {setup['global_batch']:,}, {setup['precision']}, "
        f"attention {setup['attention']}, recompute {setup['recompute']}, stack {setup['stack']}"
    )
    if layout := layout_line(setup):
        page.line(layout)
    page.line()


def _throughput(page: Page, rate: Mapping[str, Any]) -> None:
    gpus = f" on {rate['gpus']:,} GPUs" if rate["gpus"] > 1 else ""
    page.line(
        f"throughput: {rate['tokens_per_s']:,.6g} tokens/s{gpus}, "
        f"{rate['tokens_per_s_per_gpu']:,.6g} a GPU ({rate['basis']})"
    )
    if rate["ratio"] is not None:
        page.line(
            f"throughput ratio: {rate['ratio']:.2%} of the reference, "
            f"{rate['reference_tokens_per_s_per_gpu']:,.6g} tokens/s a GPU", "bold",
        )  # fmt: skip


def _conventions(page: Page, rows: list[Mapping[str, Any]]) -> None:
    cells = [
        (
            row["name"],
            f"{row['flops_per_token'] / 1e9:.4g}",
            f"{row['flops_per_s'] / 1e12:.4g}",
            "unknown" if row["share"] is None else f"{row['share']:.2%}",
            row["formula"],
        )
        for row in rows
    ]
    columns = ("Convention", ">GFLOP a token", ">TFLOP/s", ">of peak", "counts")
    page.table(columns, cells)
    for row in rows:
        page.line(f"{row['name']}: {row['by']}")
    page.line("N_mm: parameters of matmuls, head included; N: all that act on a token")
    page.line("L a d s: layers x heads x head width x context, summed over the layers")
    page.line()
