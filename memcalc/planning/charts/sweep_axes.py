"""The axes of a sweep: which options vary, over which values, and how they are written on an axis.

Which two of several lists are meant is decided here; a sweep has one axis or two. Numbers stay
numbers, so that a chart can place them; everything else is a category. Checked by:
unit/test_chart_sweep.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from memcalc.errors import ConfigError
from memcalc.units import GIB, parse_count, parse_decimal_count, parse_memory

_RULE = "rule: one or two options with several values, as --micro-batch 1..8 --seq 1k..32k*2"
#: Axis titles of the options people sweep most; others are called by their name.
_LABELS = {
    "seq": "sequence length, tokens",
    "micro-batch": "micro-batch, sequences",
    "global-batch": "global batch, sequences",
    "grad-accum": "gradient accumulation, micro-batches",
    "gpus": "GPUs",
    "layers": "layers",
    "tp": "tensor-parallel degree",
    "pp": "pipeline stages",
    "cp": "context-parallel degree",
    "ep": "expert-parallel degree",
    "dp": "data-parallel degree",
    "zero": "ZeRO stage",
    "gpu-memory": "GPU memory, GiB",
    "reserve": "reserved memory, GiB",
    "recompute": "recomputation",
    "gpu": "GPU",
}
_IN_K = ("seq", "context")


class Axis(NamedTuple):
    """One swept option. labels: its texts in `row["labels"]`; values: numbers, or the same texts."""

    name: str
    label: str
    values: tuple[float | str, ...]
    labels: tuple[str, ...]
    texts: tuple[str, ...]
    numeric: bool

    def to_dict(self) -> dict[str, Any]:
        """As JSON gives it back."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in self._asdict().items()
        }


def choose_axes(names: Sequence[str], x: str | None, y: str | None) -> list[str]:
    """The swept options, x first, from all that have lists. Raises ConfigError.

    x, y: what --x and --y say. With more than two lists the rest must be single, which is refused here.
    """
    if not names:
        raise ConfigError(f"chart sweep: got no list; {_RULE}")
    for flag, stated in (("--x", x), ("--y", y)):
        if stated is not None and stated not in names:
            raise ConfigError(f"{flag}: got {stated!r}; valid: {', '.join(names)}")
    if x is not None and x == y:
        raise ConfigError(f"--y: got {y!r}, which is --x; rule: two different options")
    rest = [name for name in names if name not in (x, y)]
    free = 2 - (x is not None) - (y is not None)
    if len(names) > 2:
        lists, single = ", ".join(names), _flags(rest[free:])
        raise ConfigError(
            f"chart sweep: got {len(names)} lists ({lists}); rule: one or two; --x and --y choose; "
            f"nearest valid: one value for {single}"
        )
    if len(names) == 1:
        return list(names)
    if x is None:
        x = next(name for name in names if name != y)
    return [x, next(name for name in names if name != x)]


def _flags(names: Iterable[str]) -> str:
    return ", ".join(f"--{name}" for name in names)


def axis_of(name: str, labels: Sequence[str], kind: str) -> Axis:
    """The axis of an option, its labels in the order they were stated, numbers sorted.

    kind: of the option table: count, decimal, number, memory or stage, else a category. Raises
    ConfigError for a text that is none of its kind.
    """
    distinct = tuple(dict.fromkeys(labels))
    numbers = _numbers(name, distinct, kind)
    label = _LABELS.get(name, name)
    if numbers is None:
        return Axis(name, label, distinct, distinct, distinct, False)
    order = sorted(range(len(numbers)), key=lambda i: numbers[i])
    values = tuple(numbers[i] for i in order)
    in_k = name in _IN_K and all(value % 1024 == 0 for value in values if value > 1024)
    texts = tuple(number_text(value, in_k) for value in values)
    return Axis(name, label, values, tuple(distinct[i] for i in order), texts, True)


def _numbers(name: str, labels: Sequence[str], kind: str) -> list[float] | None:
    if kind == "count":
        return [parse_count(text, f"--{name}") for text in labels]
    if kind == "decimal":
        return [parse_decimal_count(text, f"--{name}") for text in labels]
    if kind == "memory":
        return [parse_memory(text, f"--{name}") / GIB for text in labels]
    if kind in ("number", "stage"):
        try:
            return [float(text) for text in labels]
        except ValueError:
            return None
    return None


def number_text(value: float, in_k: bool = False) -> str:
    """A value as a tick says it: 8, 0.5, and 8k for 8192 tokens."""
    if in_k and value >= 1024 and value % 1024 == 0:
        return f"{value / 1024:g}k"
    return f"{value:,.0f}" if value == int(value) else f"{value:.4g}"


def shared(rows: Iterable[Mapping[str, Any]], key: str) -> Any:
    """The value all rows with one have in common; None where they differ or none has it."""
    found = {row.get(key) for row in rows} - {None}
    return found.pop() if len(found) == 1 else None
