"""The sweep's generations: what is asked, resuming, processes that fail; children are scripted."""

from __future__ import annotations

import pytest

from benchmarks.sweep import decode_stage
from benchmarks.sweep.children import ChildFailed
from memcalc.engine.serving.generation import Generation, generation_memory
from memcalc.harness.model.cache import check_cache
from tests.harness.sweep_support import sweep_of

WHOLE = decode_stage.asked(False)


def answer_ok(number, job):
    record = {"schema": 1, "kind": decode_stage.KIND, "status": "ok",
              "device": {"name": "NVIDIA H200"}}  # fmt: skip
    return {"status": "ok", "record": record}


def test_every_generation_can_be_stated_and_fits_80_gb():
    assert len({one.key for one in WHOLE}) == len(WHOLE) == 11
    assert {one.cache for one in WHOLE} == {"grow", "whole", "static"}
    for one in WHOLE:
        plan = one.plan()
        found = Generation(
            plan.config, plan.kernels, one.batch, one.prompt, one.new_tokens, one.cache
        )
        check_cache(found.config, plan.kinds, one.cache, found.context)
        assert generation_memory(found).peak_bytes < 40e9
        assert one.guess_s() < 60


def test_what_earlier_calls_have_is_not_generated_again(tmp_path, monkeypatch):
    sweep, script = sweep_of(tmp_path, monkeypatch, answer_ok)
    decode_stage.decode(sweep)
    assert sweep.counts["decode"] == {"ok": len(WHOLE)}
    assert len({number for number, _ in script.asked}) == 1  # one process for all
    later, script = sweep_of(tmp_path / "b", monkeypatch, answer_ok, have=[tmp_path / "out"])
    decode_stage.decode(later)
    assert later.counts["decode"] == {"had before": len(WHOLE)} and not script.asked


def test_a_process_that_fails_is_replaced_and_its_generation_tried_again(tmp_path, monkeypatch):
    def answer(number, job):
        bad = job["asked"][0] == "gpt2-xl"
        return ChildFailed("timeout", "no answer in 90 s") if bad else answer_ok(number, job)

    sweep, script = sweep_of(tmp_path, monkeypatch, answer)
    decode_stage.decode(sweep)  # FakeChild refuses to be asked after its end
    assert sweep.counts["decode"] == {"ok": len(WHOLE) - 1, "failed": 1}
    [lost] = [r for r in sweep.kept.of(decode_stage.KIND, "NVIDIA H200") if r["status"] == "failed"]
    assert "no answer" in lost["error"]["message"]
    later, script = sweep_of(tmp_path / "b", monkeypatch, answer_ok, have=[tmp_path / "out"])
    decode_stage.decode(later)
    assert [job["asked"][0] for _, job in script.asked] == ["gpt2-xl"]


@pytest.mark.parametrize("minutes", [10 / 60])
def test_nothing_is_begun_that_would_not_end_in_time(tmp_path, monkeypatch, minutes):
    sweep, script = sweep_of(tmp_path, monkeypatch, answer_ok, minutes=minutes)
    decode_stage.decode(sweep)
    assert set(sweep.counts["decode"]) == {"no time"} and not script.asked
