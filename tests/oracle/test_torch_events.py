"""Event for event: every allocation of a micro-batch and the frees between it and the next.

The engine's stream is the expanded one, all blocks written out, which also feeds the allocator.
Rotary tables and masks are left out: the engine makes them in fewer steps, before the first block.
Frees after the last allocation are left out too: there the reference lets go of the loss itself.
"""

from __future__ import annotations

import random
from itertools import takewhile

import pytest

from memcalc.harness.watch.tracker import Alloc, Event
from tests.oracle.support.compare import (
    RECOMPUTES,
    How,
    plan_of,
    random_config,
    random_extras,
    record_of,
    said,
)
from tests.oracle.support.engine_events import engine_events
from tests.oracle.support.reference import RefConfig

_BEFORE_THE_BLOCKS = {"rope_tables", "causal_mask"}
Row = tuple[int, str, str, tuple[int, ...]]  # bytes, phase, where, sorted bytes freed after it


def _rows(events: list[tuple[int, str, str] | int]) -> list[Row]:
    """Allocations as (bytes, phase, where), frees as bytes, gathered by allocation."""
    rows: list[tuple[int, str, str, list[int]]] = []
    for event in events:
        if isinstance(event, tuple):
            rows.append((*event, []))
        elif rows:
            rows[-1][3].append(event)
    return [(*row[:3], tuple(sorted(row[3]))) for row in rows if row[2] not in _BEFORE_THE_BLOCKS]


def engine_rows(cfg: RefConfig, how: How) -> list[Row]:
    plan = plan_of(cfg, how)
    return _rows(engine_events(plan, plan.structure(plan.keeps_gradients)))


def torch_rows(cfg: RefConfig, how: How) -> list[Row]:
    def in_micro_batch(event: Event) -> bool:
        return not (isinstance(event, Alloc) and event.phase in ("optimizer", "zero_grad"))

    return _rows(
        [
            (e.nbytes, e.phase, e.where) if isinstance(e, Alloc) else e.nbytes
            for e in takewhile(in_micro_batch, record_of(cfg, how).events)
        ]
    )


@pytest.mark.parametrize("precision", ["bf16", "mixed", "fp32"])
@pytest.mark.parametrize("recompute", RECOMPUTES)
def test_every_event_of_a_micro_batch(recompute, precision):
    """2 configurations an item, 42 in all."""
    rng = random.Random(f"events {recompute} {precision}")
    for family, zeroed in (("llama", False), ("gpt2", True)):
        cfg = random_config(rng, family=family, recompute=recompute, precision=precision)
        cfg = RefConfig(**vars(cfg) | random_extras(rng, cfg))
        how = How(set_to_none=not zeroed)
        ours, theirs = engine_rows(cfg, how), torch_rows(cfg, how)
        for number, (mine, torchs) in enumerate(zip(ours[:-1], theirs[:-1], strict=False)):
            assert mine == torchs, f"{said(cfg)}: allocation {number}"
        assert (len(ours), ours[-1][:3]) == (len(theirs), theirs[-1][:3]), said(cfg)
