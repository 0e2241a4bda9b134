"""Reserved bytes where several streams take memory: each keeps what it freed for itself."""

from __future__ import annotations

from memcalc.engine.allocator.replay import simulate
from memcalc.engine.allocator.streams import STREAMS, simulate_streams, streams_of
from memcalc.engine.make_plan import plan_of
from memcalc.engine.program import expanded
from memcalc.inputs.models import load_model
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.training import TrainingSetup
from memcalc.units import MIB

#: Block 0 is freed before block 1, of the same size, is taken.
EVENTS, SIZES = (0, ~0, 1, ~1), (60 * MIB, 60 * MIB)


def test_one_stream_takes_again_what_it_freed() -> None:
    assert simulate_streams(EVENTS, SIZES, {}, False) == simulate(EVENTS, SIZES)
    assert simulate(EVENTS, SIZES).peak_reserved_bytes == 60 * MIB


def test_another_stream_does_not() -> None:
    result = simulate_streams(EVENTS, SIZES, {1: 1}, False)
    assert result.peak_reserved_bytes == 120 * MIB
    assert result.peak_allocated_bytes == 60 * MIB


def test_streams_that_hold_at_once_reserve_no_more_than_one_would() -> None:
    events = (0, 1, ~0, ~1)
    for streams in ({}, {1: 2}):
        assert simulate_streams(events, SIZES, streams, True).peak_reserved_bytes == 120 * MIB


def test_fsdp2_gathers_and_reduces_on_streams_of_their_own() -> None:
    setup = TrainingSetup(seq_len=256)
    plan = plan_of(load_model("llama-3.2-1b"), setup, parallel=ParallelPlan(dp=4, fsdp=True))
    structure, runs = plan.structure(False)
    found = streams_of(structure, expanded(structure, runs))
    names = {structure.names[expanded(structure, runs).traced[block]] for block in found}
    assert names == set(STREAMS) and set(found.values()) == {1, 2}
    alone = plan_of(load_model("llama-3.2-1b"), setup)
    structure, runs = alone.structure(False)
    assert streams_of(structure, expanded(structure, runs)) == {}
