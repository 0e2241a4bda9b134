"""memcalc chart scaling MODEL --gpus 8..1024*2: throughput and MFU over GPUs, weak and strong."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, Final

from memcalc.cli.charts.priced import telling
from memcalc.cli.options import BY_NAME
from memcalc.cli.pace import positive
from memcalc.cli.parse import Arguments
from memcalc.cli.request import typed
from memcalc.cli.variants import cases_of, differing
from memcalc.errors import ConfigError
from memcalc.planning.cases import Point, points
from memcalc.planning.charts.head import label_text, need_one, results_of
from memcalc.planning.charts.scaling import STRONG, WEAK, Line, scaling
from memcalc.planning.charts.sweep_head import sweep_head
from memcalc.planning.charts.sweep_values import Value, value_of

_RULE: Final = "rule: several counts, as --gpus 8..1024*2"
_MOST: Final = 8
_SHARES: Final = ("mfu", "mfu-causal", "hfu")
#: Of the step's batch: what strong scaling fixes, and what follows from it.
_BATCH, _ACCUM = "global-batch", "grad-accum"


def found(arguments: Arguments) -> dict[str, Any]:
    """The scaling chart's object. Raises ConfigError without --gpus or a GPU, and for too many lines."""
    value = _value(arguments)
    price = positive(arguments, "price")
    modes = modes_of(arguments)
    if "gpus" not in arguments.options:
        raise ConfigError(f"chart scaling: got no --gpus; {_RULE}")
    if "gpu" not in differing(arguments) and not {"gpu", "cluster"} & set(arguments.options):
        raise ConfigError("chart scaling: got no --gpu; rule: --gpu NAME or --cluster NAME")
    lines: list[Line] = []
    for mode in sorted(modes, reverse=True):  # weak first: the batch of strong may follow from it
        own = _own(arguments, mode, lines)
        lines += _lines(own, mode)
    wanted = [line for line in lines if line.mode in modes]
    every = [point for line in wanted for point in line.points]
    need_one(every)
    first, last = wanted[0].gpus[0], wanted[0].gpus[-1]
    counts = f"{first:,} to {last:,} GPUs" if last > first else f"at {first:,} GPUs"
    said = f"{' and '.join(modes)} scaling, {counts}"
    head = sweep_head("scaling", said, every)
    head["subtitle"] = "; ".join([head["subtitle"], *_batches(wanted)])
    return scaling(head, wanted, value, price)


def modes_of(arguments: Arguments) -> list[str]:
    """weak, strong or both: as asked for; else strong where a global batch is stated. Raises ConfigError."""
    asked = [mode for mode in (WEAK, STRONG) if arguments.has(mode)]
    if _BATCH in arguments.options:
        if asked == [WEAK]:
            raise ConfigError(
                "--weak: got --global-batch too; rule: weak scaling keeps --micro-batch and "
                "--grad-accum; --strong keeps the global batch"
            )
        return asked or [STRONG]
    return asked or [WEAK]


def _value(arguments: Arguments) -> Value | None:
    word = arguments.text("value")
    value = None if word is None else value_of(word)
    if value is not None and value.value not in _SHARES:
        raise ConfigError(f"--value: got {word!r}; valid for chart scaling: {', '.join(_SHARES)}")
    return value


def _own(arguments: Arguments, mode: str, weak: Sequence[Line]) -> Arguments:
    """The arguments of one mode. Strong: a global batch, from which accumulation follows, not micro-batch."""
    options = dict(arguments.options)
    if mode == WEAK:
        options.pop(_BATCH, None)
        return _with(arguments, options)
    if _BATCH not in options:
        lines = weak or _lines(arguments, WEAK, memory=False)
        options.pop(_ACCUM, None)
        options[_BATCH] = str(_largest(lines))
    if _ACCUM not in options:
        options.setdefault("micro-batch", "1")
    return _with(arguments, options)


def _with(arguments: Arguments, options: dict[str, Any]) -> Arguments:
    return Arguments(arguments.command, list(arguments.positionals), options)


def _largest(lines: Sequence[Line]) -> int:
    """The largest global batch of weak scaling: that of the most GPUs. Raises ConfigError."""
    results = need_one([point for line in lines for point in line.points])
    return max(int(result.setup["global_batch"]) for result in results)


def _lines(arguments: Arguments, mode: str, memory: bool = True) -> list[Line]:
    """The lines of a mode: one for each combination of everything but the number of GPUs."""
    cases = cases_of(arguments)
    stated = arguments.text("gpus") or ""

    def series(case: Any) -> str:
        return label_text({k: v for k, v in case.labels.items() if k != "gpus"})

    def gpus(case: Any) -> int:
        return int(typed(BY_NAME["gpus"], case.labels.get("gpus", stated)))

    names: list[str] = list(dict.fromkeys(series(case) for case in cases))
    if len(names) > _MOST:
        raise ConfigError(
            f"chart scaling: got {len(names)} setups beside --gpus; rule: at most {_MOST} lines"
        )
    ordered = sorted(cases, key=lambda case: (names.index(series(case)), gpus(case)))
    with telling(arguments) as tell:
        priced = points(ordered, tell, allocator=memory)
    return [
        _line(mode, name, list(of), gpus) for name, of in groupby(priced, lambda p: series(p.case))
    ]


def _line(mode: str, name: str, of: Sequence[Point], gpus: Any) -> Line:
    return Line(mode, name, tuple(gpus(point.case) for point in of), tuple(of))


def _batches(lines: Sequence[Line]) -> list[str]:
    """`weak: 1 sequence a replica`, `strong: global batch 1,024`; nothing where lines differ."""
    said = []
    for mode in dict.fromkeys(line.mode for line in lines):
        setups = [r.setup for line in lines if line.mode == mode for r in results_of(line.points)]
        if mode == STRONG:
            found = {setup["global_batch"] for setup in setups}
            text = "strong: global batch {:,}"
        else:
            found = {s["micro_batch_size"] * s["grad_accum_steps"] for s in setups}
            text = f"weak: {{:,}} sequence{'s' * (found != {1})} a replica"
        said += [text.format(*found)] if len(found) == 1 else []
    return said
