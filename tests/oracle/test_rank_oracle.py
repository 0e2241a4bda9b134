"""The oracle of one rank of many: without data as with data, on the fake group as between processes."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed._tools.mem_tracker import MemTracker

from memcalc.errors import ConfigError
from memcalc.harness.ranks.layout import Layout
from memcalc.harness.ranks.rank_step import RankStep
from memcalc.harness.watch.tracker import Alloc
from memcalc.inputs.training import TrainingSetup
from tests.harness.models import LLAMA
from tests.oracle.support.compare import random_config, random_extras, random_how, said
from tests.oracle.support.rank import (
    CPU,
    WARM_UP,
    RankTrace,
    fake_ranks,
    run_rank,
    run_rank_on_data,
    without_data,
)
from tests.oracle.support.rank_cases import MANY, PAIRS
from tests.oracle.support.rank_ddp import buckets_without_data
from tests.oracle.support.rank_draw import KINDS, MORE_KINDS, RankSetup, draw_rank_setups
from tests.oracle.support.reference import model_of, setup_of
from tests.oracle.support.step import run_step

CASES = {**PAIRS, **MANY}
MIXED = TrainingSetup(seq_len=16, micro_batch_size=1, precision="bf16-mixed")
#: Cases whose micro-batches MemTracker can follow: it takes a module's second call for a mistake.
FOLLOWED = [name for name, case in CASES.items() if case.setup.grad_accum_steps is None][:2]


@cache
def _ours(name: str, rank: int) -> RankTrace:
    """A case on tensors without data."""
    return replace(CASES[name], rank=rank).run()


@pytest.mark.parametrize("seed", range(4))
def test_one_rank_makes_the_events_of_one_gpu(seed: int) -> None:
    rng = random.Random(seed)
    cfg = random_config(rng)
    cfg, how = replace(cfg, **random_extras(rng, cfg)), random_how(rng)
    kernels = {} if cfg.norm == "layer" or cfg.is_gpt2 else {"norm": cfg.norm}
    ours = run_rank(model_of(cfg), setup_of(cfg, how), Layout(), kernels=kernels)
    alone = run_step(cfg, how, device="meta", quick=True)
    expected = [e.nbytes if isinstance(e, Alloc) else -e.nbytes for e in alone.events]
    assert [event.nbytes for event in ours.events] == expected, said(cfg)
    assert (ours.peak, ours.live_before) == (alone.peak, alone.live_before), said(cfg)


@pytest.mark.parametrize("name", list(CASES)[::2])
def test_tensors_without_data_make_the_events_of_real_ones(name: str) -> None:
    case = CASES[name]
    with fake_ranks(case.layout, case.rank) as ranks, buckets_without_data(True):
        (real,) = run_rank_on_data(case.plan(), ranks, case.rank)
    ours = _ours(name, case.rank)
    assert _rows(ours) == _rows(real)
    assert ours.bytes.phases == real.bytes.phases
    assert ours.bytes.breakdown == real.bytes.breakdown
    assert ours.live_after == ours.live_before == real.live_after


def _rows(trace: RankTrace) -> list[tuple[Any, ...]]:
    return [(e.nbytes, e.aten, e.phase, e.where) for e in trace.events]


@pytest.mark.parametrize("rank", range(2))
@pytest.mark.parametrize("name", PAIRS)
def test_two_processes_allocate_what_a_rank_of_the_fake_group_does(
    between_processes: list[dict[str, Any]], name: str, rank: int
) -> None:
    seen, ours = between_processes[rank][name], _ours(name, rank)
    assert seen["allocations"] == [list(row) for row in _rows(ours) if row[0] > 0]
    assert seen["peak"] == ours.peak


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")  # the loss is a view
@pytest.mark.parametrize("name", FOLLOWED)
def test_the_peak_is_that_of_torchs_own_trackers(name: str) -> None:
    case = CASES[name]
    with fake_ranks(case.layout, case.rank) as ranks, without_data():
        step = RankStep(case.plan(), ranks)
        for _ in range(WARM_UP + 1):
            step.run()
        peak = _mem_tracker_peak(step, case.layout.fsdp and case.layout.shard is None)
    fused = case.setup.optimizer_impl == "fused"  # its `step` is on the device, and counted
    host = 0 if fused else 4 * sum(len(o.state) for o in step.optimizers)
    assert peak - host == _ours(name, case.rank).peak


def _mem_tracker_peak(step: RankStep, knows_fsdp: bool) -> int:
    if knows_fsdp:
        tracker: Any = FSDPMemTracker(step.model, step.optimizers[0])
        tracker.track_inputs((step.ids,))
    else:
        tracker = MemTracker()
        tracker.track_external(step.model, *step.optimizers, step.ids, *step.other_tensors())
    with tracker:
        step.run()
        tracker.reset_mod_stats()
        step.run()
    peak: int = tracker.get_tracker_snapshot("peak")[CPU]["Total"]
    return peak


@pytest.mark.parametrize("setup", draw_rank_setups(2026, 2), ids=lambda setup: setup.name)
def test_drawn_setups_end_as_they_began(setup: RankSetup) -> None:
    trace = setup.run()
    assert trace.live_after == trace.live_before
    lives = [live for live, _ in trace.live()]
    assert max(lives) == trace.peak == sum(trace.bytes.breakdown.values())
    assert trace.live_before == sum(alloc.nbytes for alloc in trace.bytes.initial)


def test_the_same_seed_draws_the_same_setups() -> None:
    assert draw_rank_setups(5, 8) == draw_rank_setups(5, 8) != draw_rank_setups(6, 8)
    kinds = [setup.layout for setup in draw_rank_setups(5, len(KINDS))]
    assert [(one.fsdp, one.tp > 1) for one in kinds] == [
        (True, False), (False, True), (True, True), (False, False),
    ]  # fmt: skip
    for kind in (*KINDS, *MORE_KINDS):
        layouts = [setup.layout for setup in draw_rank_setups(1, 5, kind)]
        assert all(one.fsdp == ("sdp" in kind) for one in layouts)
        assert all((one.shard is not None) == ("hsdp" in kind) for one in layouts)


def _group_events(trace: RankTrace, phase: str, comm: str) -> list[int]:
    return [e.nbytes for e in trace.events if e.phase == phase and e.comm == comm]


def _padded(config: Any, ranks: int) -> list[int]:
    """Elements of each parameter's part of a Llama block: rows divided and rounded up."""
    h, f = config.hidden_size, config.intermediate_size
    q, k = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
    shapes = [(h, 1), (q, h), (k, h), (k, h), (h, q), (h, 1), (f, h), (f, h), (h, f)]
    return [-(-rows // ranks) * rest for rows, rest in shapes]


def test_a_block_is_gathered_cast_flat_copied_out_and_freed() -> None:
    ranks = 12  # divides no row count here: parts are padded
    trace = run_rank(LLAMA, MIXED, Layout(dp=ranks, fsdp=True))
    parts = _padded(LLAMA, ranks)
    flat, whole = 2 * sum(parts), 2 * ranks * sum(parts)
    copies = [2 * ranks * n for n in parts]
    root_rows = [-(-500 // ranks) * 64, -(-64 // ranks), -(-500 // ranks) * 64]
    root = 2 * ranks * sum(root_rows)
    assert _group_events(trace, "forward", "layers.0:all_gather") == [flat, whole, -flat]
    assert _group_events(trace, "forward", "layers.0:copy_out") == [*copies, -root]
    assert _group_events(trace, "forward", "layers.0:reshard") == [-n for n in copies]
    assert _group_events(trace, "forward", "layers.1:copy_out") == [*copies, -whole]
    assert _group_events(trace, "backward", "layers.1:copy_out") == [*copies, -whole]
    assert trace.bytes.gathered == root


def test_gradients_are_reduced_in_fp32_and_the_last_one_is_freed_last() -> None:
    trace = run_rank(LLAMA, MIXED, Layout(dp=8, fsdp=True))
    parts = _padded(LLAMA, 8)
    reduced = 4 * 8 * sum(parts)
    grads = [2 * n * 8 for n in parts]
    first = [*(-g for g in reversed(grads[:-1])), 4 * sum(parts), -grads[-1]]
    assert _group_events(trace, "backward", "layers.1:reduce_scatter") == [reduced, *first]
    # The input of the group before is kept until this one's parameters are freed.
    assert _group_events(trace, "backward", "layers.0:reduce_scatter") == [
        -reduced,
        reduced,
        *first,
    ]


def test_parameters_can_stay_whole_or_on_fewer_ranks() -> None:
    parts = _padded(LLAMA, 8)
    freed = run_rank(LLAMA, MIXED, Layout(dp=8, fsdp=True))
    kept = run_rank(LLAMA, MIXED, Layout(dp=8, fsdp=True, reshard=False))
    fewer = run_rank(LLAMA, MIXED, Layout(dp=8, fsdp=True, reshard=2))
    assert _group_events(kept, "forward", "layers.0:reshard") == []
    both = [n for part in parts for n in (2 * 8 * part // 2, -2 * 8 * part)]
    assert _group_events(fewer, "forward", "layers.0:reshard") == both
    whole, layers = 2 * 8 * sum(parts), LLAMA.num_hidden_layers
    assert kept.bytes.gathered - freed.bytes.gathered == layers * whole
    assert fewer.bytes.gathered - freed.bytes.gathered == layers * whole // 2
    assert freed.bytes.saved == kept.bytes.saved == fewer.bytes.saved


def test_sharding_groups_keep_what_as_many_ranks_alone_keep() -> None:
    groups = run_rank(LLAMA, MIXED, Layout(dp=8, fsdp=True, shard=4), rank=6)
    alone = run_rank(LLAMA, MIXED, Layout(dp=4, fsdp=True), rank=2)
    assert _rows(groups) == _rows(alone)


def test_the_embeddings_gradient_is_whole_on_every_tensor_parallel_rank() -> None:
    trace = run_rank(LLAMA, MIXED, Layout(tp=2, sp=True))
    states, table = trace.bytes.states, 4 * 500 * 64
    assert states["gradients"] - states["parameters"] == table - table // 2


def test_ddp_keeps_a_second_copy_of_gradients_that_are_not_views() -> None:
    views = run_rank(LLAMA, MIXED, Layout(dp=2))
    copies = run_rank(LLAMA, MIXED, Layout(dp=2), bucket_views=False)
    gradients = views.bytes.states["gradients"]
    assert copies.live_before == views.live_before  # buckets live on either way
    assert copies.phases["optimizer"] - views.phases["optimizer"] == gradients


@pytest.mark.parametrize(
    ("stated", "line"),
    [
        ({"dp": 2, "reshard": True}, "reshard: got no fsdp; rule: of sharded parameters"),
        ({"dp": 2, "shard": 2}, "shard: got no fsdp; rule: of sharded parameters"),
        ({"dp": 8, "fsdp": True, "reshard": 3},
         "reshard: got 3; rule: divides the sharding ranks = 8; valid: 1, 2, 4, 8"),
        ({"dp": 8, "fsdp": True, "shard": 3}, "shard: got 3; rule: divides dp = 8; valid: 1, 2, 4, 8"),
        ({"dp": 8, "tp": 2, "fsdp": True, "reshard": 2},
         "reshard: got 2 with tp 2; rule: PyTorch keeps no parameters that tp splits on fewer ranks"),
    ],
)  # fmt: skip
def test_shardings_that_cannot_be_are_refused_in_a_line(stated: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as error:
        Layout(**stated)
    assert str(error.value).startswith(line)


def test_the_fake_group_is_gone_afterwards() -> None:
    run_rank(LLAMA, MIXED, Layout(dp=2, fsdp=True))
    assert not torch.distributed.is_initialized()
