"""Columns of a comparison: their names on the command line, the row's key behind each, and its unit.

better says which end makes one row better than another; a column where neither does has none. Options
that differ are columns as well, in the order given. Checked by: cli/test_compare.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from memcalc.errors import ConfigError, unknown
from memcalc.units import GIB

Row = Mapping[str, Any]


class Column(NamedTuple):
    """One column. key: of a row (`planning/rows.py: KEYS`), the option's name where it is a label.

    heading: a line each; scale: from the row's unit to the shown one. better: low | high | none.
    kind: amount (GiB), rate, share (%), seconds, usd, count, fits, word or label.
    """

    name: str
    key: str
    heading: tuple[str, ...]
    scale: float
    better: str
    kind: str


def _memory(name: str, key: str, better: str = "low") -> Column:
    return Column(name, key, (name, "GiB"), 1 / GIB, better, "amount")


def _share(name: str, heading: tuple[str, ...]) -> Column:
    return Column(name, name.replace("-", "_"), heading, 100, "high", "share")


def _time(name: str, key: str, heading: tuple[str, ...], better: str = "none") -> Column:
    return Column(name, key, heading, 1, better, "seconds")


_ALL: Final = (
    _memory("memory", "device_used_bytes"),
    _memory("requested", "peak_requested_bytes"),
    _memory("allocated", "peak_allocated_bytes"),
    _memory("reserved", "peak_reserved_bytes"),
    _memory("usable", "usable_bytes", "none"),
    _memory("headroom", "headroom_bytes", "high"),
    _memory("host", "host_bytes"),
    Column("fits", "verdict", ("fits",), 1, "none", "fits"),
    Column("gpus", "gpus", ("GPUs",), 1, "none", "count"),
    Column("tokens-per-s", "tokens_per_s", ("tokens/s",), 1, "high", "rate"),
    Column("tokens-per-s-per-gpu", "tokens_per_s_per_gpu", ("tokens/s", "a GPU"), 1, "high", "rate"),
    _share("mfu", ("MFU",)),
    _share("mfu-causal", ("MFU", "causal")),
    _share("hfu", ("HFU",)),
    _time("step-time", "step_s", ("step",), "low"),
    _time("step-low", "low_s", ("step", "at least")),
    _time("step-high", "high_s", ("step", "at most")),
    Column("bound", "bound", ("bound by",), 1, "none", "word"),
    Column("cost", "usd_per_million_tokens", ("USD a", "M tokens"), 1, "low", "usd"),
    Column("calibration", "calibration", ("rates",), 1, "none", "word"),
    Column("command", "command", ("command",), 1, "none", "word"),
)  # fmt: skip
COLUMNS: Final = {column.name: column for column in _ALL}
#: What rows are ordered by and the best one is chosen by where nothing else is asked for.
SPEED: Final = COLUMNS["tokens-per-s-per-gpu"]


def label_columns(options: Sequence[str]) -> list[Column]:
    """A column for each option that differs."""
    return [Column(name, name, (name,), 1, "none", "label") for name in options]


def column_of(what: str, word: str, options: Sequence[str] = ()) -> Column:
    """The column of a word, also spelt with underscores. Raises ConfigError naming the nearest.

    what: the option that the word is of; options: names of those that differ, columns as well.
    """
    name = word.strip().lower().replace("_", "-")
    if name in options:
        return label_columns([name])[0]
    if name not in COLUMNS:
        raise unknown(what, word.strip(), [*COLUMNS, *options])
    return COLUMNS[name]


def columns_of(what: str, text: str) -> list[Column]:
    """The columns of a list of words, each once. Raises ConfigError."""
    words = text.split(",")
    if not all(word.strip() for word in words):
        raise ConfigError(f"{what}: got {text!r}; rule: names of columns; valid: {_names()}")
    return list(dict.fromkeys(column_of(what, word) for word in words))


def default_columns(rows: Sequence[Row], price: float | None) -> list[Column]:
    """Memory and the verdict, speed and MFU as far as known; the cost where a price was stated."""

    def known(name: str) -> bool:
        return any(row[COLUMNS[name].key] is not None for row in rows)

    names = ["memory" if known("memory") else "allocated"]
    names += ["fits"] if known("fits") else []
    if known("tokens-per-s"):
        names += ["tokens-per-s"]
        names += ["tokens-per-s-per-gpu"] if any((row["gpus"] or 1) > 1 for row in rows) else []
        names += ["mfu"] if known("mfu") else []
    names += ["cost"] if price is not None and known("cost") else []
    return [COLUMNS[name] for name in names]


def _names() -> str:
    return ", ".join(COLUMNS)
