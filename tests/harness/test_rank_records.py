"""Records of ranks: lost ones completed, the cause of a run's end, and what each is held against."""

from __future__ import annotations

from typing import Any

import pytest

from memcalc.errors import MemcalcError
from memcalc.harness import records
from memcalc.harness.ranks.layout import Layout
from memcalc.harness.ranks.rank_records import (
    LOST,
    STOPPED,
    cause,
    completed,
    merged,
    rank_bytes,
    runs_of,
)
from memcalc.harness.record_head import new_record
from tests.harness.models import cpu_plan

LAYOUT = Layout(dp=2, tp=2, fsdp=True)


def record(rank: int, peak: int = 100, **more: Any) -> dict[str, Any]:
    place = LAYOUT.place(rank)
    return {
        **new_record("measure", cpu_plan()),
        "status": "ok", "rank": rank, "device": {"type": "cpu"}, "options": {}, "time": {},
        "world": {"size": 4, **LAYOUT.plain(), "pp_rank": place.pp, "dp_rank": place.dp,
                  "tp_rank": place.tp, "blocks": [0, 2]},
        "loss": None, "loss_fell": True, "notes": [],
        "memory": {
            "peak_requested_bytes": peak, "saved_for_backward_bytes": 30, "gathered_bytes": 7,
            "phases": {"forward": 60},
            "states": {"parameters": 10, "gradients": 11, "optimizer": 20, "master": 5},
        },
        **more,
    }  # fmt: skip


def failed(rank: int, kind: str, status: str = "failed") -> dict[str, Any]:
    return record(rank, status=status, error={"type": kind, "message": kind, "stage": "build"})


def test_a_rank_that_said_nothing_gets_a_record_that_says_so() -> None:
    found = completed([record(0), record(1), record(2), None], ["over"] * 3 + ["warm-up"], "id")
    assert [entry["rank"] for entry in found] == [0, 1, 2, 3]
    assert all(entry["batch"] == {"id": "id", "ranks": 4} for entry in found)
    lost = found[3]
    assert lost["status"] == "failed" and lost["error"]["type"] == LOST
    assert lost["error"]["stage"] == "warm-up" and lost["setup"] == found[0]["setup"]
    assert (lost["world"]["dp_rank"], lost["world"]["tp_rank"]) == (1, 1)


def test_a_run_of_which_no_rank_had_begun_is_an_error() -> None:
    with pytest.raises(MemcalcError, match="before any had begun"):
        completed([{"status": "failed"}, None], [None, None], "id")


def test_the_cause_is_the_lost_rank_then_the_first_to_fail() -> None:
    ok, stopped = record(0), failed(1, STOPPED)
    broke, memory = failed(2, "RuntimeError"), failed(3, "MemoryError", "oom")
    lost = completed([ok, None], ["x", "y"], "id")[1]
    assert cause([ok, record(1)], None) is None
    assert cause([ok, stopped, broke, memory], 3) is memory
    assert cause([ok, stopped, broke, memory], 1) is broke
    assert cause([ok, stopped, broke], 2) is broke
    assert cause([broke, lost], 2) is lost
    assert cause([ok, stopped], 1) is stopped


def test_the_result_of_a_run_shows_the_rank_that_needs_most() -> None:
    result = merged([record(0, 100), record(1, 300), record(2, 200), record(3, 300)], None)
    assert result["status"] == "ok" and result["error"] is None
    assert result["memory"]["rank"] == 1 and result["memory"]["peak_requested_bytes"] == 300
    assert result["world"]["dp"] == 2 and "dp_rank" not in result["world"]
    assert [entry["rank"] for entry in result["ranks"]] == [0, 1, 2, 3]
    ended = merged([record(0), failed(1, "MemoryError", "oom")], 1)
    assert ended["status"] == "oom" and ended["error"]["rank"] == 1


def test_each_ranks_bytes_for_its_estimate() -> None:
    found = rank_bytes([record(1, 300), record(0, 100)])
    assert [entry.rank for entry in found] == [0, 1]
    assert found[1].peak == 300 and found[1].saved == 30 and found[1].gathered == 7
    assert (found[0].parameters, found[0].gradients, found[0].optimizer) == (10, 11, 25)
    assert found[0].phases == {"forward": 60}
    nothing = rank_bytes([record(0, memory={})])[0]
    assert nothing.peak is None and nothing.optimizer is None and nothing.phases == {}


def test_runs_are_found_again_in_a_file_of_all_kinds(tmp_path: Any) -> None:
    path = tmp_path / "records.jsonl"
    single = record(0)
    first = completed([record(r) for r in range(4)], [None] * 4, "first")
    second = completed([record(r) for r in range(4)], [None] * 4, "second")
    records.append(path, single)
    records.append_all(path, first)
    records.append_all(path, second)
    runs = runs_of(records.read(path))
    assert [[entry["rank"] for entry in run] for run in runs] == [[0, 1, 2, 3]] * 2
    assert runs[0][0]["batch"]["id"] == "first"


def test_several_records_are_one_write_or_none(tmp_path: Any) -> None:
    path = tmp_path / "records.jsonl"
    records.append(path, record(0))
    before = path.read_bytes()
    with pytest.raises(TypeError):
        records.append_all(path, [record(0), record(1, notes=[object()])])
    assert path.read_bytes() == before
