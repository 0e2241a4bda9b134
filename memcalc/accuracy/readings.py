"""How a memory figure is read whose source says neither its kind nor its unit, where other facts do.

A figure of unknown kind is held against allocated, one of unknown unit read as GiB. `READINGS` are the
sources whose own table rules that out; a reading moves no figure to the scored ones, and is named
among what was assumed.
Checked by: unit/test_accuracy_readings.py, published/test_adapters.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from memcalc.accuracy.rows import Row

UNKNOWN: Final = "unknown"


class Reading(NamedTuple):
    """unit: what the figures count in; kind: which prediction they are held against; why: of both."""

    unit: str
    kind: str
    why: str


#: Part of a source's name -> how its figures are read. QwenLM/Qwen, README.md, "Profiling of Memory and
#: Speed", prints "memory (GB)" and G. Full fine-tuning of Qwen-7B has 162.0 G on two cards: 81.0 GiB each is
#: more than the 80 GiB of an A100. It grows by 22.8 G from 256 to 1,024 tokens, LoRA of the same model, with
#: the same checkpoints, by 1.4 G: so much more is no tensor, but what the allocator keeps.
READINGS: Final[Mapping[str, Reading]] = {
    "Qwen-1 finetune": Reading(
        "GB",
        "reserved",
        "memory in GB (10^9): in GiB a row exceeds its cards; held against reserved: it grows with the "
        "length by more than tensors do",
    ),
}


def reading(row: Row) -> Reading | None:
    """How the row's figure is read, where its source's name has an entry."""
    return next((found for name, found in READINGS.items() if name in row.source), None)


def unit_of(row: Row) -> tuple[str, str | None]:
    """The unit of the row's figure, and what was assumed of it: a name of `pricing.UNITS`."""
    unit, read = row.text("mem_unit") or UNKNOWN, reading(row)
    if unit != UNKNOWN:
        return unit, None
    return (read.unit, read.why) if read else (unit, "unit not stated: GiB")


def held_against(row: Row) -> str:
    """The kind of memory that the row's figure is compared with: its own, or that of its reading."""
    kind, read = row.text("mem_kind") or UNKNOWN, reading(row)
    if kind != UNKNOWN:
        return kind
    return read.kind if read else "allocated"
