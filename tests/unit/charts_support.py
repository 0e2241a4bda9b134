"""What tests of charts share: cases of small models, and drawn things read back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure
from matplotlib.text import Text

from memcalc.engine.device_side import device_of
from memcalc.inputs.models import load_model
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.training import TrainingSetup
from memcalc.planning.cases import Case, Point, Refused, point_of


def point(
    labels: Mapping[str, str] = {},  # noqa: B006  # never changed
    gpu: str | None = "h100-80gb",
    model: str = "gpt2",
    parallel: ParallelPlan | None = None,
    **setup: Any,
) -> Point:
    """The point of a small model's setup."""
    stated = TrainingSetup(**{"seq_len": 64, **setup})
    layout, device = parallel or ParallelPlan(), device_of(gpu)
    return point_of(
        Case(
            dict(labels), "memcalc estimate x", model, load_model(model), stated, layout, {}, device
        )
    )


def refused(labels: Mapping[str, str], reason: str) -> Point:
    """A case whose options do not go together."""
    return Point(Refused(dict(labels), "memcalc estimate x", reason), None, reason)


def texts(figure: Figure) -> list[Text]:
    """Every text that is seen: titles, labels, ticks within the axes, legends."""
    found = [*figure.texts, *(t for legend in figure.legends for t in legend.get_texts())]
    for axes in figure.axes:
        found += [*axes.texts, axes.xaxis.label, axes.yaxis.label]
        for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            ticks = axis.get_major_ticks()
            low, high = min(low, high), max(low, high)
            found += [t.label1 for t in ticks if low <= t.get_loc() <= high]
    return [text for text in found if text.get_text().strip() and text.get_visible()]


def assert_nothing_is_cut_off(figure: Figure) -> None:
    """No text leaves the picture, and none of the labels in the axes lies on another."""
    box = figure.bbox
    for text in texts(figure):
        extent = text.get_window_extent()
        inside = box.x0 - 1 <= extent.x0 and extent.x1 <= box.x1 + 1
        assert inside and box.y0 - 1 <= extent.y0 and extent.y1 <= box.y1 + 1, text.get_text()
    for axes in figure.axes:
        extents = [(t.get_text(), t.get_window_extent()) for t in axes.texts]
        for at, (one, first) in enumerate(extents):
            for other, second in extents[at + 1 :]:
                assert not first.padded(-1).overlaps(second.padded(-1)), (one, other)


def legend_names(figure: Figure) -> list[str]:
    """The texts of all legends."""
    legends = [*figure.legends, *(a.get_legend() for a in figure.axes if a.get_legend())]
    return [text.get_text() for legend in legends for text in legend.get_texts()]
