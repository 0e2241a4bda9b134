"""memcalc chart sweep MODEL: memory and speed over one option or two that have several values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from memcalc.cli.charts.priced import telling
from memcalc.cli.options import BY_NAME
from memcalc.cli.pace import positive
from memcalc.cli.parse import Arguments
from memcalc.cli.variants import cases_of, differing
from memcalc.errors import ConfigError
from memcalc.planning.cases import Case, Refused, point_of
from memcalc.planning.charts.sweep import sweep
from memcalc.planning.charts.sweep_axes import Axis, axis_of, choose_axes
from memcalc.planning.charts.sweep_head import sweep_head
from memcalc.planning.charts.sweep_values import Value, panels_of, value_of

#: Categories of an axis that the second line of the title looks at.
_LOOKED_AT = 12
Cases = Sequence[Case | Refused]


def found(arguments: Arguments) -> dict[str, Any]:
    """The sweep's object.

    Raises ConfigError without a list, with more than two, for unknown words, and where every
    combination is refused.
    """
    from memcalc.planning.quick import quick_rows

    word = arguments.text("value")
    value = None if word is None else value_of(word)
    price = positive(arguments, "price")
    names = choose_axes(differing(arguments), arguments.text("x"), arguments.text("y"))
    cases = cases_of(arguments)
    axes = [_axis(name, cases) for name in names]
    with telling(arguments) as tell:
        rows = quick_rows(cases, tell, price)
    if all(row["reason"] is not None for row in rows):
        raise ConfigError(rows[0]["reason"])
    probes = [point_of(case, allocator=False) for case in _probes(axes, cases, rows)]
    head = sweep_head("sweep", _what(axes, value, rows), probes)
    return sweep(head, axes, rows, value)


def _axis(name: str, cases: Cases) -> Axis:
    return axis_of(name, [case.labels[name] for case in cases], BY_NAME[name].kind)


def _what(axes: Sequence[Axis], value: Value | None, rows: Sequence[Mapping[str, Any]]) -> str:
    """`memory and throughput over micro-batch and seq`."""
    both = "memory and throughput" if len(panels_of(value, rows)) > 1 else "memory"
    shown = both if value is None else value.name
    return f"{shown} over {' and '.join(axis.name for axis in axes)}"


def _probes(
    axes: Sequence[Axis], cases: Cases, rows: Sequence[Mapping[str, Any]]
) -> Iterator[Case]:
    """Cases that stand for all in the title: the first, and along each axis the others or the last."""
    good = [
        case
        for case, row in zip(cases, rows, strict=True)
        if isinstance(case, Case) and row["reason"] is None
    ]
    first = good[0]
    yield first
    for axis in axes:
        along = [
            case
            for case in good
            if all(case.labels[a.name] == first.labels[a.name] for a in axes if a is not axis)
        ]
        yield from along[-1:] if axis.numeric else along[1:_LOOKED_AT]
