"""Many sizes at once give what one size at a time gives: the allocator's replay, and whole rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcalc import ParallelPlan, TrainingSetup
from memcalc.engine.allocator.replay import simulate
from memcalc.engine.device_side import device_of
from memcalc.engine.grid import allocator as grid_allocator
from memcalc.engine.grid import memory as grid_memory
from memcalc.engine.grid.allocator import TooManyBlocks, simulate_grid
from memcalc.inputs.models import load_model
from memcalc.planning import quick
from memcalc.planning.cases import Case, Refused, point_of
from memcalc.planning.quick import FEWEST, agrees, quick_rows
from memcalc.planning.rows import KEYS, SIMULATED, row_of

MIB = 1 << 20
LANES = 5
H100 = device_of("h100-80gb")
#: Sizes on both sides of every rule: pools, own segments, remainders that are split off or stay.
SIZE = st.one_of(
    st.integers(0, 3 * MIB),
    st.integers(0, 40).map(lambda halves: halves * MIB // 2),
    st.sampled_from([0, 1, 512, 513, MIB - 512, MIB, MIB + 1, 2 * MIB, 10 * MIB - 512, 10 * MIB]),
)


@st.composite
def streams(draw):
    """Events as (allocate or free), with a size a lane for each block; many share their sizes."""
    kinds = draw(st.lists(st.tuples(*[SIZE] * LANES), min_size=1, max_size=6))
    kinds = [np.array(kind) for kind in kinds] + [draw(SIZE)]
    events, sizes, alive = [], [], []
    for what in draw(st.lists(st.integers(0, 999), min_size=1, max_size=120)):
        if alive and what % 5 < 2:
            events.append(~alive.pop(what % len(alive)))
        else:
            alive.append(len(sizes))
            events.append(len(sizes))
            sizes.append(kinds[what % len(kinds)])
    return events, sizes


@given(streams())
@settings(max_examples=150, deadline=None)
def test_the_array_replay_is_the_replay_of_every_lane(stream):
    events, sizes = stream
    found = simulate_grid(events, sizes, LANES)
    for lane in range(LANES):
        own = [int(np.broadcast_to(size, LANES)[lane]) for size in sizes]
        alone = simulate(events, own)
        assert found.allocated[lane] == alone.peak_allocated_bytes
        assert found.reserved[lane] == alone.peak_reserved_bytes


def test_more_pieces_than_slots_are_refused(monkeypatch):
    monkeypatch.setattr(grid_allocator, "_SLOT_BITS", {True: 7, False: 7})
    blocks = 200
    events = [*range(blocks), *(~i for i in range(blocks))]
    with pytest.raises(TooManyBlocks):
        simulate_grid(events, [np.array([10 * MIB, 12 * MIB])] * blocks, 2)


STRUCTURES = {
    "dense": ("llama-3.2-1b", {}, {}),
    "gpt2, accumulated": ("gpt2", {}, {"grad_accum_steps": 3, "seq_len": 1024}),
    "experts, recomputed": ("mixtral-8x7b", {}, {"recompute": "sac"}),
    "latent attention": ("deepseek-v2-lite", {}, {"recompute": "full"}),
    "eager attention, no GPU": (
        "llama-7b",
        {},
        {"attention": "eager", "seq_len": 2048, "device": None},
    ),
    "compiled": ("llama-3.2-1b", {}, {"compile": True, "loss": "chunked"}),
    "fsdp, two streams": ("llama-3.1-8b", {"dp": 16, "fsdp": True}, {}),
    "tp": ("llama-3.1-8b", {"tp": 4}, {"optimizer_impl": "fused", "grad_clip": True}),
    "megatron": ("llama-3.1-8b", {"tp": 2, "dp": 2, "zero": 1}, {"stack": "megatron"}),
    "deepspeed": ("llama-3.2-1b", {"dp": 8, "zero": 2}, {"stack": "deepspeed"}),
}


def cases_of(name, sizes):
    """Cases of one structure, of these (micro-batch, sequence)."""
    model, layout, fields = STRUCTURES[name]
    fields = {"num_layers": 2, **fields}
    device = H100 if fields.pop("device", H100) else device_of(None)
    fixed = fields.pop("seq_len", None)
    config, parallel = load_model(model), ParallelPlan(**layout)
    return [
        Case(
            {"micro-batch": str(b)}, f"memcalc estimate {model}", model, config,
            TrainingSetup(micro_batch_size=b, seq_len=min(s, fixed or s), **fields),
            parallel, {}, device,
        )
        for b, s in sizes
    ]  # fmt: skip


def drawn_sizes(count, least=2):
    """Sizes with a few short ones, odd ones, and ones far beyond any GPU."""
    draw = np.random.default_rng(7)
    lengths = draw.choice([64, 128, 1000, 1024, 2048, 4096, 5008, 12288], count)
    return list(zip(draw.integers(least, 24, count).tolist(), lengths.tolist(), strict=True))


@pytest.fixture
def grids(monkeypatch):
    """How many rows came from grids, by call."""
    counted, original = [], quick._grid_rows

    def watched(lanes, parts, price):
        found = original(lanes, parts, price)
        counted.append(len(found))
        return found

    monkeypatch.setattr(quick, "_grid_rows", watched)
    return counted


@pytest.mark.parametrize("name", STRUCTURES)
def test_rows_of_a_grid_are_the_scalar_rows(name, grids):
    cases = cases_of(name, drawn_sizes(80 if name == "compiled" else FEWEST + 8))
    rows = quick_rows(cases, price=2.5)
    assert sum(grids) >= FEWEST
    for case, row in list(zip(cases, rows, strict=True))[1::7]:
        scalar = row_of(point_of(case), 2.5)
        assert tuple(row) == tuple(scalar) == KEYS
        assert row["reserved"] == SIMULATED
        for name in ("peak_requested_bytes", "peak_allocated_bytes", "peak_reserved_bytes"):
            assert row[name] == scalar[name]
        assert (row["fits"], row["verdict"]) == (scalar["fits"], scalar["verdict"])
        if scalar["step_s"] is not None:
            assert row["step_s"] == pytest.approx(scalar["step_s"], rel=1e-9)
        assert agrees(row, scalar), {k: (row[k], scalar[k]) for k in row if row[k] != scalar[k]}


def test_verdicts_at_the_edge_of_a_device_are_the_scalar_ones(grids):
    cases = cases_of("dense", [(b, s) for b in (2, 3, 4, 6) for s in range(256, 4096, 384)])
    rows = quick_rows(cases)
    middle = sorted(row["device_used_bytes"] for row in rows)[len(rows) // 2]
    small = device_of("h100-80gb", gpu_memory_bytes=middle - 40 * MIB)
    tight = [case._replace(device=small) for case in cases]
    found = [(row["fits"], row["verdict"]) for row in quick_rows(tight)]
    scalar = [point_of(case).result for case in tight]
    assert found == [(result.fits, result.verdict) for result in scalar]
    assert {fits for fits, _ in found} == {True, False}
    assert grids == [len(cases)] * 2


def test_points_far_beyond_the_device_are_scaled_and_say_so(monkeypatch, grids):
    monkeypatch.setattr(grid_memory, "ALL_REPLAYED", 40)
    monkeypatch.setattr(grid_memory, "SAMPLED", 12)
    cases = cases_of(
        "dense", [(b, s) for b in (2, 4, 8, 16, 24, 32) for s in range(2048, 22528, 2048)]
    )
    rows = quick_rows(cases)
    scaled = [place for place, row in enumerate(rows) if row["reserved"] != SIMULATED]
    assert 10 < len(scaled) < len(rows) - 20
    for place in scaled[::5]:
        row, scalar = rows[place], row_of(point_of(cases[place]))
        assert row["reserved"].startswith("ratio of ")
        assert row["note"]
        assert row["verdict"] == scalar["verdict"] == "does-not-fit"
        assert row["peak_requested_bytes"] == scalar["peak_requested_bytes"]
        assert row["peak_allocated_bytes"] == pytest.approx(
            scalar["peak_allocated_bytes"], rel=0.01
        )
        assert row["peak_reserved_bytes"] == pytest.approx(scalar["peak_reserved_bytes"], rel=0.15)
        assert agrees(row, scalar)
    assert all(row["reserved"] == SIMULATED for row in rows if row["fits"])


def test_a_grid_that_disagrees_with_the_scalar_path_is_dropped(monkeypatch, grids):
    original = quick.grid_time

    def slower(plan, device, lanes):
        answer = original(plan, device, lanes)
        return answer._replace(time=answer.time._replace(step_s=answer.time.step_s * 1.001))

    monkeypatch.setattr(quick, "grid_time", slower)
    cases = cases_of("dense", drawn_sizes(FEWEST))
    rows = quick_rows(cases)
    assert grids == [0]
    assert rows[5] == row_of(point_of(cases[5]))


def test_rows_keep_their_order_among_refused_and_scalar_cases(grids):
    grid = cases_of("dense", drawn_sizes(FEWEST))
    few = cases_of("gpt2, accumulated", [(2, 128)])
    bad = [case._replace(setup=TrainingSetup(num_layers=99)) for case in few]
    heard = []
    rows = quick_rows(
        [Refused({}, "memcalc estimate x", "no such"), *grid[:9], *few, *bad, *grid[9:]],
        lambda *told: heard.append(told),
    )
    assert [row["model"] for row in rows] == [None, *["llama-3.2-1b"] * 9, "gpt2", "gpt2"] + [
        "llama-3.2-1b"
    ] * (FEWEST - 9)
    assert rows[0]["reason"] == "no such"
    assert "at most 12" in rows[11]["reason"]
    assert rows[12]["peak_requested_bytes"] == row_of(point_of(grid[9]))["peak_requested_bytes"]
    assert heard[-1] == ("estimates", len(rows), len(rows))
    assert grids == [FEWEST]


def test_a_global_batch_that_is_accumulated_differently_is_one_grid(grids):
    config, parallel = load_model("gpt2"), ParallelPlan(dp=2)
    cases = [
        Case(
            {}, "", "gpt2", config,
            TrainingSetup(seq_len=s, micro_batch_size=b, global_batch=96, num_layers=2),
            parallel, {}, H100,
        )
        for b in (2, 3, 4, 6, 8) for s in range(128, 1152, 128)
    ]  # fmt: skip
    rows = quick_rows(cases)
    assert grids == [len(cases)]
    for place in (0, 12, 21, 39):
        assert agrees(rows[place], row_of(point_of(cases[place])))


def test_micro_batches_of_one_are_replayed_with_the_others(grids):
    cases = cases_of("dense", [(b, s) for b in (1, 2, 3, 5) for s in range(256, 4352, 384)])
    rows = quick_rows(cases)
    assert grids == [len(cases)]
    for place in (0, 5, 17, 30):
        assert agrees(rows[place], row_of(point_of(cases[place])))


def test_no_cases_are_no_rows():
    assert quick_rows([]) == []
