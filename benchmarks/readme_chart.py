"""Draw the README's chart: where the memory of one training step goes, by recomputation.

    python benchmarks/readme_chart.py        # writes docs/pictures/breakdown.png

The plotted bytes are those of `memcalc estimate --json`; tests/unit/test_readme_chart.py reads them back.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from memcalc import Estimate, TrainingSetup, estimate
from memcalc.units import GIB

MODEL, GPU, MICRO_BATCH, SEQ = "llama-3.1-8b", "h100-80gb", 2, 4096
RECOMPUTE = ("none", "sac", "sac-attention", "full")
#: Category -> colour of Okabe and Ito's colour-blind-safe palette.
COLOURS = {
    "parameters": "#0072B2",
    "gradients": "#56B4E9",
    "optimizer": "#009E73",
    "activations": "#E69F00",
    "loss": "#D55E00",
    "temporary": "#CC79A7",
    "other": "#999999",
}
_PLAIN = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
OUT = Path(__file__).parent.parent / "docs" / "pictures" / "breakdown.png"


def results() -> dict[str, Estimate]:
    """One estimate for each kind of recomputation."""
    return {
        kind: estimate(
            MODEL,
            TrainingSetup(
                seq_len=SEQ, micro_batch_size=MICRO_BATCH, precision="bf16", recompute=kind,
                optimizer_impl="fused",
            ),
            gpu=GPU,
        )
        for kind in RECOMPUTE
    }  # fmt: skip


def categories(result: Estimate) -> dict[str, int]:
    """Bytes by plotted category; the small ones are one."""
    parts = result.memory.breakdown
    small = parts.buffers + parts.workspace + parts.rounding
    return {
        **{name: getattr(parts, name) for name in COLOURS if name != "other"},
        "other": small,
    }


def draw(found: dict[str, Estimate]) -> Figure:
    """Stacked bars of allocated bytes at the peak, with the device's usable memory as a line."""
    figure, axes = plt.subplots(figsize=(7.2, 3.4), layout="constrained")
    left = dict.fromkeys(found, 0.0)
    for name, colour in COLOURS.items():
        widths = [categories(result)[name] / GIB for result in found.values()]
        axes.barh(
            list(found), widths, left=list(left.values()), color=colour, label=name, height=0.62
        )
        left = {kind: left[kind] + width for kind, width in zip(found, widths, strict=True)}
    for position, (kind, result) in enumerate(found.items()):
        place = result.memory.peak_at.replace("/", ": ", 1)
        text = f" {left[kind]:.1f} GiB, {place}"
        axes.text(left[kind] + 0.4, position, text, va="center", fontsize=8, bbox=_PLAIN)
    usable = next(iter(found.values())).memory.usable_bytes or 0
    axes.axvline(usable / GIB, color="black", linestyle="--", linewidth=1)
    axes.text(usable / GIB, -0.75, f" usable {usable / GIB:.1f} GiB", fontsize=8, va="center")
    axes.set_xlim(0, max(left.values()) * 1.34)
    axes.set_ylim(len(found) - 0.5, -1.0)
    axes.set_xlabel("allocated at the peak (GiB)")
    axes.set_ylabel("--recompute")
    axes.set_title(
        f"{MODEL}, {MICRO_BATCH} x {SEQ} tokens, bf16, fused AdamW, one {GPU}", fontsize=10
    )
    axes.legend(loc="upper center", bbox_to_anchor=(0.45, -0.2), ncols=4, fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    """Write the picture."""
    OUT.parent.mkdir(parents=True, exist_ok=True)
    draw(results()).savefig(OUT, dpi=200)
    print(OUT)


if __name__ == "__main__":
    main()
