"""Memory over one step, predicted and measured, as a picture: where the peak is, and that they agree.

The measured bytes are a grey area, the prediction a line on it, so that a difference shows as a gap.
Phases are shaded, the peak is marked with the operator that causes it. Checked by:
cli/test_verify.py (what is plotted is what was measured).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from memcalc.engine.memory import BUFFER_OPS
from memcalc.output.events import Event
from memcalc.units import GIB, MIB

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PHASES = {"forward": "#dbe9f6", "loss": "#fde6c8", "backward": "#e2f0d9", "optimizer": "#f0e0ee"}
_MEASURED, _PREDICTED, _PEAK = "#9aa5b1", "#0b5394", "#b45f06"


class Instant(Protocol):
    """A measured instant: what harness/verify.py returns."""

    @property
    def phase(self) -> str:
        """forward, loss, backward, optimizer, zero_grad."""

    @property
    def where(self) -> str:
        """The operator at work."""

    @property
    def live_bytes(self) -> int:
        """Bytes of tensors alive."""


class Series(NamedTuple):
    """Bytes alive and phase, event by event."""

    live_bytes: list[int]
    phases: list[str]


def measured_series(timeline: Sequence[Instant]) -> list[Instant]:
    """A measured step without what makes tables and masks: an estimate makes them in fewer steps."""
    kept, in_blocks = [], False
    for instant in timeline:
        in_blocks = instant.where.startswith("layers.") or in_blocks and instant.phase != "forward"
        if in_blocks or instant.where not in BUFFER_OPS:
            kept.append(instant)
    return kept


def predicted_series(events: Sequence[Event], accum: int) -> Series:
    """An estimate's events; with more than two micro-batches the last of them repeats."""
    start = max(i for i, event in enumerate(events) if event.phase == "start")
    rows, in_blocks = [], False
    for event in events[start:]:
        in_blocks = event.layer >= 0 or in_blocks and event.phase != "forward"
        if event.allocated_bytes > 0 and (in_blocks or event.op not in BUFFER_OPS):
            rows.append((event.live_bytes, event.phase))
    if accum > 2:
        firsts = [i for i in range(1, len(rows)) if rows[i][1] == "forward" != rows[i - 1][1]]
        end = next(i for i, row in enumerate(rows) if row[1] == "optimizer")
        rows[end:end] = rows[firsts[-1] : end] * (accum - 2)
    return Series([live for live, _ in rows], [phase for _, phase in rows])


def memory_chart(
    events: Sequence[Event],
    timeline: Sequence[Instant],
    record: Mapping[str, Any],
    accum: int,
    path: str,
) -> None:
    """Draw both and write the picture (.png, .svg or .pdf by the file's ending)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 4.6), layout="constrained")
    try:
        draw(axes, predicted_series(events, accum), measured_series(timeline))
        axes.set_title(_title(record), fontsize=11, loc="left")
        figure.supxlabel(_source(record), fontsize=7, color="#555555")
        figure.savefig(path, dpi=200, metadata=_metadata(path))
    finally:
        plt.close(figure)


def draw(axes: Axes, predicted: Series, measured: Sequence[Instant]) -> None:
    """Both series on one axes, phases behind them, the measured peak marked."""
    top = max(*predicted.live_bytes, *(instant.live_bytes for instant in measured))
    unit, name = (GIB, "GiB") if top >= GIB else (MIB, "MiB")
    _shade(axes, [instant.phase for instant in measured])
    levels = [instant.live_bytes / unit for instant in measured]
    axes.fill_between(range(len(levels)), levels, step="post", color=_MEASURED, label="measured")
    axes.step(
        range(len(predicted.live_bytes)), [live / unit for live in predicted.live_bytes],
        where="post", color=_PREDICTED, linewidth=1.2, label="predicted",
    )  # fmt: skip
    peak = max(range(len(levels)), key=lambda i: levels[i])
    left = peak > len(levels) / 2
    axes.annotate(
        f"peak {levels[peak]:,.2f} {name}, {measured[peak].phase}/{measured[peak].where}",
        (peak, levels[peak]), xytext=(-10 if left else 10, 16), textcoords="offset points",
        ha="right" if left else "left", fontsize=9, color=_PEAK,
        arrowprops={"arrowstyle": "-", "color": _PEAK},
    )  # fmt: skip
    axes.set_xlim(0, max(len(levels), len(predicted.live_bytes)))
    axes.set_ylim(0, 1.22 * top / unit)
    axes.set_ylabel(f"tensors alive, {name}")
    axes.set_xlabel("allocations of one step, in order")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower left", fontsize=9, framealpha=0.9)


def _shade(axes: Axes, phases: Sequence[str]) -> None:
    """A band for each phase, its name where there is room."""
    start, named = 0, set()
    for phase, group in groupby(phases):
        end = start + len(list(group))
        if phase in _PHASES:
            axes.axvspan(start, end, color=_PHASES[phase], linewidth=0, zorder=0)
            if phase not in named and (end - start) > 0.05 * len(phases):
                named.add(phase)
                axes.text((start + end) / 2, 0.985, phase, ha="center", va="top", fontsize=9,
                          color="#444444", transform=axes.get_xaxis_transform())  # fmt: skip
        start = end


def _title(record: Mapping[str, Any]) -> str:
    setup, resolved = record["setup"], record["setup"]["resolved"]
    training, layers = setup["training"], setup["model"]["num_hidden_layers"]
    return (
        f"{setup['model']['name']}, {layers} layers: memory of one training step\n"
        f"seq {resolved['seq_len']}, micro-batch {resolved['micro_batch_size']}, "
        f"{training['precision']}, {training['optimizer']}, recompute {training['recompute']}"
    )


def _source(record: Mapping[str, Any]) -> str:
    device = record["device"]
    return (
        f"memcalc {record['memcalc']}, measured {record['date'][:10]} on {device['name']}, "
        f"torch {device['torch']}; bytes of tensors, scratch inside kernels left out"
    )


def _metadata(path: str) -> dict[str, Any]:
    """No date in the file, so that the same picture is the same bytes."""
    return {"Date": None} if path.lower().endswith(".svg") else {}
