"""The measured generation: its stages, what a broken one keeps, times of passes, what is judged."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from memcalc.engine.serving.generation import Generation
from memcalc.harness import decode_run
from memcalc.harness.decode_run import measure_decode, times_of
from memcalc.harness.decode_verify import compared, decode_estimate, verify_decode
from memcalc.harness.measure import MeasureOptions
from tests.harness.models import LLAMA, cpu_plan

FAST = MeasureOptions(device="cpu", steps=2, warmup=1, threads=1)


def _asked(new: int = 3, code: str = "grow") -> tuple[Any, Generation]:
    plan = cpu_plan(LLAMA, precision="bf16", optimizer="none", seq_len=12 + new)
    return plan, Generation(plan.config, plan.kernels, 2, 12, new, code)


def test_times_are_medians_over_passes() -> None:
    found = times_of([[9.0, 1.0, 2.0], [7.0, 3.0, 4.0], [8.0, 5.0, 6.0]], batch=4)
    assert found["prefill_s"] == 8.0 and found["time_per_output_token_s"] == 3.5
    assert found["tokens_per_s"] == pytest.approx(4 / 3.5)


def test_a_record_has_every_pass_of_every_generation() -> None:
    plan, asked = _asked()
    seen: list[str] = []
    record = measure_decode(plan, asked, FAST, lambda stage, done, total: seen.append(stage))
    assert record["status"] == "ok" and record["kind"] == "measure-decode"
    assert [len(passes) for passes in record["time"]["passes_s"]] == [4, 4]
    assert "timed generations" in seen
    assert record["decode"] == {"batch": 2, "prompt": 12, "new_tokens": 3, "cache": "grow"}


def test_a_run_that_breaks_keeps_what_was_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory: tried to allocate 3.00 GiB")

    monkeypatch.setattr(decode_run, "tracked_generation", fail)
    plan, asked = _asked()
    record = measure_decode(plan, asked, FAST)
    assert record["status"] == "oom" and record["error"]["stage"] == "memory"
    assert len(record["time"]["passes_s"]) == 2


def test_an_estimate_of_another_generation_is_outside() -> None:
    plan, asked = _asked()
    _, longer = _asked(4)
    device = torch.device("cpu")
    told = decode_estimate(longer, device, "default", 1)
    record = verify_decode(plan, asked, told, FAST)
    verdicts = {row["name"]: row["verdict"] for row in record["comparison"]["rows"]}
    assert not record["comparison"]["verified"]
    assert verdicts["weights"] == verdicts["cache after the prompts"] == "equal"
    assert verdicts["cache at the end"] == "outside"
    assert verdicts["one token"] == "not predicted" and told["notes"]


def test_counters_of_a_gpu_are_shown_and_not_judged() -> None:
    plan, asked = _asked()
    told = decode_estimate(asked, torch.device("cpu"), "default", 1)
    record = measure_decode(plan, asked, FAST)
    record["memory"] |= {"allocator": {}, "peak_allocated_bytes": 1, "peak_reserved_bytes": 2}
    rows = {row.name: row for row in compared(told, record).rows}
    assert rows["peak allocated"].verdict == "not judged"
    assert rows["peak allocated"].predicted == told["memory"]["peak_requested_bytes"]
