"""Cases of one rank of many: PyTorch's own sharding on its fake process group, a class a layout."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from benchmarks.exact.case import Answer, Case, counted, ways_of
from memcalc.accuracy import textbook
from memcalc.engine.memory import step_memory
from memcalc.engine.parallel.pipeline.pipeline import stage_of
from memcalc.engine.parallel.pipeline.pipeline_memory import stage_memory
from memcalc.harness.ranks.layout import Layout
from tests.oracle import (
    test_context_parallel,
    test_ddp,
    test_expert_parallel,
    test_fsdp1,
    test_fsdp2,
    test_pipeline,
)
from tests.oracle.support.data_parallel import engine_plan
from tests.oracle.support.pipeline import run_stage
from tests.oracle.support.pipeline_draw import draw_pipelines
from tests.oracle.support.rank_draw import RankSetup
from tests.oracle.support.rank_fsdp1 import Wrapped, run_fsdp1
from tests.oracle.support.tensor_cases import ALONE, SHARDED
from tests.oracle.support.tensor_parallel import draw

DDP, FSDP2, HSDP, FSDP1 = "DDP", "FSDP2", "HSDP", "FSDP1"
TP, TP_FSDP2, PIPELINE = "tensor parallel", "tensor parallel and FSDP2", "pipeline"
CONTEXT, EXPERT = "context parallel", "expert parallel"
#: Drawn setups of tensor parallelism, alone and beside FSDP2, as the tests number them.
_ALONE, _SHARDED = 17, 14


def ranks() -> Iterator[Case]:
    """Every layout."""
    for number, one in enumerate(test_fsdp2.DRAWN):
        yield _rank(HSDP if one.layout.shard else FSDP2, f"drawn {number}", one)
    for name, one in test_fsdp2.CHOSEN.items():
        yield _rank(HSDP if one.layout.shard else FSDP2, name, one)
    for number, one in enumerate(test_ddp.DRAWN):
        yield _rank(DDP, f"drawn {number}", one)
    for name, one in ALONE.items():
        yield _rank(TP, name, one)
    for number in range(_ALONE):
        yield _rank(TP, f"drawn {number}", draw(f"tensor parallel {number}", sharded=False))
    for name, one in SHARDED.items():
        yield _rank(TP_FSDP2, name, one)
    for number in range(_SHARDED):
        drawn = draw(f"sharded tensor parallel {number}", sharded=True)
        yield _rank(TP_FSDP2, f"drawn {number}", drawn)
    for name, one in test_context_parallel.CASES.items():
        yield _rank(CONTEXT, name, one, test_context_parallel._plan)
    for name, one in test_expert_parallel.CASES.items():
        yield _rank(EXPERT, name, one)
    for name, wrapped in test_fsdp1.SETUPS.items():
        yield _fsdp1(name, wrapped)
    yield from _pipelines()


def _rank(kind: str, name: str, one: RankSetup, plan: Any = engine_plan) -> Case:
    return Case(
        f"{kind}: {name}", one.name,
        lambda: {kind: step_memory(plan(one)).peak_bytes},
        lambda: {kind: one.run().peak},
        lambda: {kind: textbook.peak_bytes(one.config, one.setup, counted(one.config),
                                           ways_of(one.layout))},
    )  # fmt: skip


def _fsdp1(name: str, one: Wrapped) -> Case:
    layout = Layout(dp=one.dp, fsdp=True, shard=one.shard)
    ways = ways_of(layout)._replace(stage=one.zero)
    return Case(
        f"{FSDP1}: {name}", f"{one.config.model_type} dp{one.dp} {name}",
        lambda: {FSDP1: step_memory(one.plan()).peak_bytes},
        lambda: {FSDP1: run_fsdp1(one).peak},
        lambda: {FSDP1: textbook.peak_bytes(one.config, one.setup, counted(one.config), ways)},
    )  # fmt: skip


def _pipelines() -> Iterator[Case]:
    """The drawn stages of test_pipeline.py: first, last and another in turn."""
    counts = {**test_pipeline.WHOLE, **test_pipeline.HALVES}
    for schedule, number in test_pipeline.CASES:
        one = draw_pipelines(11, counts[schedule], schedule)[number]
        rank = (0, one.layout.pp - 1, one.layout.pp // 2)[number % 3]
        yield Case(
            f"{PIPELINE}: {schedule} {number}", f"{one.name} rank {rank}",
            partial(_stage, one, rank), partial(_stage_by_torch, one, rank),
            partial(_stage_by_hand, one),
        )  # fmt: skip


def _stage(one: Any, rank: int) -> Answer:
    return {PIPELINE: stage_memory(stage_of(one.plan(), rank)).peak_bytes}


def _stage_by_torch(one: Any, rank: int) -> Answer:
    return {PIPELINE: run_stage(one.plan(), rank)[0].peak}


def _stage_by_hand(one: Any) -> Answer:
    ways = textbook.Ways(pp=one.layout.pp)
    setup = replace(one.setup, grad_accum_steps=1)
    return {PIPELINE: textbook.peak_bytes(one.config, setup, counted(one.config), ways)}
