"""What a sweep can show: the word of --value, the row's key, and how it is written.

Every quantity is a key of `planning/rows.py: KEYS`; scale turns its unit into the shown one (bytes into
GiB, shares into per cent). Checked by: unit/test_chart_sweep.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from memcalc.errors import unknown
from memcalc.units import GIB

Row = Mapping[str, Any]


class Value(NamedTuple):
    """One quantity of a row. better: high | low | none, what makes one row better than another."""

    value: str
    key: str
    label: str
    unit: str
    scale: float
    better: str
    kind: str  # memory | rate: which of the two default panels it takes the place of

    def text(self, row: Row) -> str:
        """A row's amount in its unit, `73.3 GiB`; a dash where it is unknown."""
        amount = row[self.key]
        return "-" if amount is None else f"{amount_text(amount * self.scale)} {self.unit}"

    @property
    def name(self) -> str:
        """What a title calls it: the label without its convention."""
        return self.label.partition(",")[0]

    def said(self, row: Row) -> str:
        """A row's amount in a sentence: `8,627 tokens/s`, `MFU 43.1 %`."""
        return self.text(row) if self.unit == "tokens/s" else f"{self.name} {self.text(row)}"


def _memory(word: str, key: str, label: str) -> Value:
    return Value(word, key, label, "GiB", 1 / GIB, "none", "memory")


def _rate(word: str, label: str, unit: str, key: str = "", scale: float = 1) -> Value:
    better = "low" if unit in ("s", "USD") else "high"
    return Value(word, key or word.replace("-", "_"), label, unit, scale, better, "rate")


_ALL: Final = (
    _memory("memory", "device_used_bytes", "memory used"),
    _memory("requested", "peak_requested_bytes", "requested"),
    _memory("allocated", "peak_allocated_bytes", "allocated"),
    _memory("reserved", "peak_reserved_bytes", "reserved"),
    _memory("headroom", "headroom_bytes", "headroom"),
    _memory("host", "host_bytes", "host memory of a rank"),
    _rate("tokens-per-s", "throughput of all GPUs", "tokens/s"),
    _rate("tokens-per-s-per-gpu", "throughput a GPU", "tokens/s"),
    _rate("mfu", "MFU, full square", "%", scale=100),
    _rate("mfu-causal", "MFU, causal", "%", scale=100),
    _rate("hfu", "HFU", "%", scale=100),
    _rate("step-time", "step time", "s", "step_s"),
    _rate("cost", "cost of a million tokens", "USD", "usd_per_million_tokens"),
)
VALUES: Final = {one.value: one for one in _ALL}
#: What a row is judged by where nothing else is asked for.
DEFAULT_RATE: Final = VALUES["tokens-per-s-per-gpu"]


def value_of(word: str) -> Value:
    """The quantity of a word of --value, also spelt with underscores. Raises ConfigError."""
    name = word.strip().lower().replace("_", "-")
    if name not in VALUES:
        raise unknown("--value", word, VALUES)
    return VALUES[name]


def panels_of(value: Value | None, rows: Sequence[Row]) -> list[Value]:
    """What to show: the quantity asked for, else memory and throughput as far as they are known.

    Where no row fits there is no throughput to speak of, and memory alone is shown.
    """
    if value is not None:
        return [value]
    used = any(row["device_used_bytes"] is not None for row in rows)
    runs = any(row[DEFAULT_RATE.key] is not None and row["fits"] is not False for row in rows)
    memory = VALUES["memory" if used else "allocated"]
    return [memory, *([DEFAULT_RATE] if runs else [])]


def amount_text(amount: float) -> str:
    """A number as short as its reader needs: 7,286, 73.3, 0.148."""
    if abs(amount) >= 99.95:
        return f"{amount:,.0f}"
    return f"{amount:.1f}" if abs(amount) >= 9.995 else f"{amount:.3g}"
