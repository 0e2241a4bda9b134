"""What every chart's object begins with: title, the setup in a line, and where the figures come from.

The setup line holds what all setups of a chart share; what tells them apart is in their labels.
Checked by: unit/test_charts_head.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from memcalc.engine.results import SCHEMA, Estimate
from memcalc.engine.words import layout_line, setup_words
from memcalc.errors import ConfigError
from memcalc.planning.cases import Point

#: Options whose value says what it is: `h100`, not `gpu h100`.
_PLAIN = frozenset({"model", "gpu", "setup", "cluster", "precision", "optimizer"})


def head(kind: str, title: str, subtitle: str, points: Sequence[Point] = ()) -> dict[str, Any]:
    """{"schema", "memcalc", "chart", "title", "subtitle", "source"} of a chart.

    points: whose calibrations and stacks the source line names; none: it names the version only.
    """
    from memcalc import __version__

    return {
        "schema": SCHEMA,
        "memcalc": __version__,
        "chart": kind,
        "title": title,
        "subtitle": subtitle,
        "source": source_line(results_of(points)),
    }


def source_line(results: Iterable[Estimate]) -> str:
    """`memcalc 0.1.0; rates default-hopper; stack torch`."""
    from memcalc import __version__

    found = list(results)
    rates = _distinct(result.time.calibration for result in found)
    stacks = _distinct(result.setup["stack"] for result in found)
    said = [f"memcalc {__version__}"]
    said += [f"rates {_listed(rates)}"] if rates else []
    said += [f"stack{'s' * (len(stacks) > 1)} {_listed(stacks)}"] if stacks else []
    return "; ".join(said)


def results_of(points: Iterable[Point]) -> list[Estimate]:
    """The estimates there are."""
    return [point.result for point in points if point.result is not None]


def need_one(points: Sequence[Point]) -> list[Estimate]:
    """The estimates there are; raises the first refusal's ConfigError where there is none."""
    found = results_of(points)
    if not found:
        reason = next((point.reason for point in points if point.reason), "nothing to draw")
        raise ConfigError(reason)
    return found


def model_on_gpu(points: Sequence[Point]) -> str:
    """`llama-3.1-8b on h100-80gb`, `llama-3.1-70b on 64 x h100-80gb`; several are listed or counted."""
    results = results_of(points)
    return models_on_gpus((result.model.name for result in results), map(_gpu, results))


def models_on_gpus(models: Iterable[str | None], gpus: Iterable[str | None]) -> str:
    """These models on these GPUs, each once: up to three are listed, more counted."""
    names, kinds = _distinct(models), _distinct(gpus)
    shown = _listed(names) if len(names) <= 3 else f"{len(names)} models"
    if not kinds:
        return shown
    return f"{shown} on {_listed(kinds) if len(kinds) <= 3 else f'{len(kinds)} kinds of GPU'}"


def _gpu(result: Estimate) -> str | None:
    name, count = result.setup["gpu"], result.setup["gpus"] or 1
    if count > 1:
        return f"{count} x {name}" if name else f"{count} GPUs"
    return str(name) if name else None


def setup_line(points: Sequence[Point]) -> str:
    """`seq 2048, micro-batch 1, bf16-mixed, ...; 64 GPUs: dp 64, fsdp`: what all points share."""
    setups = [result.setup for result in results_of(points)]
    if not setups:
        return ""
    told = [setup_words(setup) for setup in setups]
    words = [word for word in told[0] if all(word in other for other in told)]
    layouts = _distinct(layout_line(setup) for setup in setups)
    same = len(layouts) == 1 and all(layout_line(setup) for setup in setups)
    return "; ".join([", ".join(words), *(layouts if same else [])])


def label_of(point: Point) -> str:
    """What tells a point from the others, `h100, micro-batch 2`; empty for the only one."""
    return label_text(point.case.labels)


def label_text(labels: Mapping[str, str]) -> str:
    """The labels of a case as one text."""
    return ", ".join(
        text if name in _PLAIN else f"{name} {text}".strip() for name, text in labels.items()
    )


def _distinct(values: Iterable[str | None]) -> list[str]:
    return list(dict.fromkeys(value for value in values if value))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)
