"""Bytes alive over a measured step, allocation by allocation, and the few points a record keeps of them.

What makes tables and masks before the first block is left out: an estimate makes them in fewer steps.
Checked by: harness/test_verify.py (equal to the estimate's events).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from memcalc.engine.memory import BUFFER_OPS
from memcalc.engine.series import spans_of, thinned
from memcalc.harness.watch.tensors import TensorBytes, place
from memcalc.harness.watch.tracker import Alloc

#: Points a record keeps; a picture shows no more.
KEPT = 360


class Instant(NamedTuple):
    """Bytes alive after one allocation, with its phase and the operator at work."""

    phase: str
    where: str
    live_bytes: int


def instants(tensors: TensorBytes) -> list[Instant]:
    """Bytes alive after each allocation of a step: every high there is, and how much comes between."""
    live = tensors.live_before
    found = [Instant("start", "", live)]
    in_blocks = False
    for event in tensors.events:
        if not isinstance(event, Alloc):
            live -= event.nbytes
            continue
        live += event.nbytes
        where = place(event.where)
        in_blocks = where.startswith("layers.") or (in_blocks and event.phase != "forward")
        if in_blocks or where not in BUFFER_OPS:
            found.append(Instant(event.phase, where, live))
    return found


def timeline_record(found: Sequence[Instant]) -> dict[str, Any]:
    """{"allocations", "at", "live_bytes", "spans"}: what a record keeps of a step.

    at: which allocations, from 0, the bytes before the step; live_bytes: alive after each; spans:
    [phase, begin, end] over the allocations. The highest of every stretch of a phase is among them.
    """
    levels = [instant.live_bytes for instant in found]
    phases = [instant.phase for instant in found]
    at = thinned(levels, phases, [_layer(instant) for instant in found], KEPT)
    return {
        "allocations": len(found),
        "at": at,
        "live_bytes": [levels[number] for number in at],
        "spans": [list(span) for span in spans_of(phases)],
    }


def _layer(instant: Instant) -> int:
    """The block at work, -1 outside the blocks."""
    first, _, rest = instant.where.partition(".")
    number = rest.partition("/")[0]
    return int(number) if first == "layers" and number.isdecimal() else -1
