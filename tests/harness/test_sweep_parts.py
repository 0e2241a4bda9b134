"""Parts of the GPU sweep: its setups, children, clock, report, and the questions it asks."""

from __future__ import annotations

import collections
import os
import subprocess
import time
from pathlib import Path

import pytest

from benchmarks.sweep import kept as kept_module
from benchmarks.sweep import report, stages
from benchmarks.sweep.children import Child, ChildFailed, Clock, Log
from benchmarks.sweep.kept import Kept
from benchmarks.sweep.predictions import device_for, guess_s, predict
from benchmarks.sweep.setups import CUSTOM, memory_setups, tiny_setups
from memcalc.errors import ConfigError
from memcalc.harness import records
from memcalc.inputs.training_names import LOSSES
from tests.harness.sweep_support import stand_in_for_cuda, stop_the_clock

ROOT = Path(__file__).parents[2]
H100 = {"type": "cuda", "name": "NVIDIA H100 80GB HBM3", "total_bytes": 84_929_347_584}
MAIN = [s for s in memory_setups() if not s.expects_oom]
PLAIN = [s for s in MAIN if not s.compiled]


# --- setups ---------------------------------------------------------------------------------------


def test_there_are_at_least_120_different_setups_and_they_never_change_between_calls():
    again = [spec.key for spec in memory_setups()]
    assert len(PLAIN) >= 120 and len(set(again)) == len(again)
    assert [spec.key for spec in memory_setups()] == again


def test_setups_reach_every_option_and_the_stated_sizes():
    def values(name):
        return collections.Counter(spec.training.get(name) for spec in PLAIN)

    assert set(values("precision")) == set(stages._ORDER)
    assert set(values("recompute")) == {"none", "selective", "sac", "sac-attention", "full"}
    assert values("recompute_layers").total() > values("recompute_layers")[None]
    assert values("reentrant")[True] >= 3
    assert set(values("loss")) == set(LOSSES)
    assert set(values("attention")) == {"flash", "efficient", "cudnn", "eager"}
    wanted = {"adamw", "sgd", "momentum", "adafactor", "muon", "none"}
    assert set(values("optimizer")) == wanted
    assert {"foreach", "fused", "loop"} <= set(values("optimizer_impl"))
    assert {1, 2, 3} <= set(values("grad_accum_steps"))
    assert values("grad_clip")[True] >= 10 and values("set_to_none")[False] >= 10
    assert min(values("seq_len")) == 512 and max(values("seq_len")) == 32768
    families = {spec.config.model_type for spec in PLAIN}
    assert len(families) >= 16
    assert {"llama", "qwen2", "qwen3", "gpt2", "mixtral", "gemma2", "deepseek_v2"} <= families
    for name in ("recompute", "loss", "attention"):
        assert min(values(name).values()) >= 6, name
    assert {s.group for s in memory_setups() if s.compiled} == {
        ("bf16", True),
        ("bf16-mixed", True),
    }


def test_setups_fit_80_gb_by_the_estimate_and_the_two_meant_to_overrun_do_not():
    device = device_for(H100)
    assert device.gpu is not None and device.gpu.slug == "h100-80gb"
    for spec in memory_setups():
        found = predict(spec, device, "cuda")
        if spec.compiled and "error" in found:
            continue  # a version without the compiled stack
        assert found["fits"] is not spec.expects_oom, spec.label()
        assert 1 < guess_s(spec, found, "cuda") < 130
    assert sum(spec.expects_oom for spec in memory_setups()) == 2


def test_the_key_tells_setups_apart_and_holds_an_own_models_sizes(monkeypatch):
    spec = tiny_setups()[0]
    changed = spec._replace(training={**spec.training, "seq_len": 64})
    before = spec.key
    assert changed.key != before
    monkeypatch.setitem(CUSTOM, spec.model, {**CUSTOM[spec.model], "vocab_size": 512})
    assert spec.key != before


# --- children -------------------------------------------------------------------------------------


@pytest.fixture
def log(tmp_path):
    made = Log(tmp_path / "log.txt")
    yield made
    made.close()


def test_a_child_answers_survives_an_error_and_says_how_it_died(log):
    child = Child("cpu", log)
    try:
        assert child.ask({"kind": "echo", "x": 3}, 240)["job"]["x"] == 3
        failed = child.ask({"kind": "echo", "fail": "no\nluck"}, 240)
        assert failed["status"] == "failed" and failed["error"] == "no luck"
        assert failed["error_type"] == "RuntimeError"
        assert child.ask({"kind": "echo"}, 240)["status"] == "ok" and child.jobs == 3
        with pytest.raises(ChildFailed, match="died: exit status 7"):
            child.ask({"kind": "echo", "exit": 7}, 240)
    finally:
        child.close()
    assert "RuntimeError: no" in log.path.read_text()  # the traceback is in the log


def test_a_child_that_hangs_is_killed_in_time(log):
    child = Child("cpu", log)
    child.ask({"kind": "echo"}, 240)
    start = time.monotonic()
    with pytest.raises(ChildFailed, match="timeout"):
        child.ask({"kind": "echo", "sleep_s": 60}, 0.5)
    assert time.monotonic() - start < 10 and child.process.poll() is not None
    with pytest.raises(ChildFailed, match="died"):
        child.ask({"kind": "echo"}, 5)


def test_the_log_stops_growing_at_its_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.sweep.children._LOG_LIMIT", 1000)
    log = Log(tmp_path / "log.txt")
    for _ in range(100):
        log.line("x" * 90)
    log.close()
    assert (tmp_path / "log.txt").stat().st_size < 1200


def test_the_clock_learns_how_long_jobs_really_take(monkeypatch):
    stop_the_clock(monkeypatch)
    clock = Clock(1.0)
    assert clock.allows("measure", 50) and not clock.allows("measure", 70)
    assert not clock.allows("measure", 50, extra_s=15)
    for _ in range(30):
        clock.learn("measure", 10, 25)
    assert 2 < clock.stretch("measure") < 3 and not clock.allows("measure", 50)
    assert clock.stretch("question") == 1.0 and clock.allows("question", 50)
    for _ in range(99):
        clock.learn("question", 10, 0.1)  # a guess is never cut to less than half
    assert clock.stretch("question") == 0.5


# --- records and report ---------------------------------------------------------------------------


def row(role="main", key="a", status="ok", measured_memory=None, predicted=None):
    return {
        "schema": 1, "kind": "measure", "status": status, "device": {"name": "X"},
        "memory": measured_memory or {}, "estimate": {"memory": predicted or {}},
        "sweep": {"key": key, "label": key, "role": role},
    }  # fmt: skip


def test_the_report_gives_n_median_bias_and_worst_of_signed_errors():
    rows = [
        row(key=str(n), measured_memory={"peak_allocated_bytes": 1000},
            predicted={"peak_allocated_bytes": 1000 + n})
        for n in (-50, 0, 10, 19, 41)
    ]  # fmt: skip
    rows += [
        row(key="oom", status="oom"),
        row(key="none", measured_memory={"peak_allocated_bytes": 5}),
    ]
    rows.append(row(key="0", role="control", measured_memory={"peak_allocated_bytes": 1001},
                    predicted={"peak_allocated_bytes": 1000}))  # fmt: skip
    found = report.summary(report.errors(rows))
    assert set(found) == {"allocated"}
    said = found["allocated"]
    assert said["n"] == 5 and said["worst_label"] == "-50"
    assert said["median"] == pytest.approx(0.01) and said["bias"] == pytest.approx(0.004)
    assert said["worst"] == pytest.approx(-0.05) and said["within_2_pct"] == pytest.approx(0.6)
    assert [r["label"] for r in report.large(report.errors(rows))] == ["-50", "41"]
    [control] = report.controls(report.errors(rows))
    assert control["difference"] == pytest.approx(0.001)


def test_a_full_file_takes_no_more_records(tmp_path, monkeypatch):
    monkeypatch.setattr(kept_module, "MOST_BYTES", 3000)
    kept = Kept(tmp_path / "new" / "folder", [])
    for number in range(60):
        kept.add(row(key=str(number)))
    path = tmp_path / "new" / "folder" / "records.jsonl"
    assert kept.dropped > 20 and path.stat().st_size <= 3000
    assert len(records.read(path)) == 60 - kept.dropped


def test_earlier_records_that_are_not_there_are_an_error_in_one_line(tmp_path):
    with pytest.raises(ConfigError, match="^--have: got .*nowhere"):
        Kept(tmp_path, [tmp_path / "nowhere"])


# --- questions a CPU can answer, and the code of the others ---------------------------------------


@pytest.fixture
def torch(monkeypatch):
    monkeypatch.setenv("KINETO_LOG_LEVEL", "99")
    return pytest.importorskip("torch")


def test_growth_counts_peak_and_what_is_left(torch):
    from memcalc.harness.watch.growth import growth

    def call():
        kept = torch.zeros(1 << 16)
        passing = torch.zeros(1 << 18)
        return kept + passing[: 1 << 16]

    found = growth(call, torch.device("cpu"))
    assert found.end_bytes == 4 << 16
    assert found.peak_bytes == (4 << 16) + (4 << 18) + (4 << 16)


def test_gradients_of_a_tensor_read_thrice_are_summed_in_place_except_under_a_mode(torch):
    from benchmarks.sweep.autograd_questions import accumulation

    found = accumulation(torch.device("cpu"), True)
    assert found["sums_in_place"] and found["leaf_in_place"] and found["second_batch_in_place"]
    assert found["interior under a mode"]["peak_units"] == pytest.approx(3, abs=0.01)


def test_scatter_in_backward_formulas_works_in_place_except_under_a_mode(torch):
    from benchmarks.sweep.autograd_questions import scatter

    more = scatter(torch.device("cpu"), True)["more_units_under_a_mode"]
    assert more["topk"] == more["gather"] == more["index"] == pytest.approx(1, abs=0.01)
    assert more["index_add"] == more["embedding"] == 0


def test_the_allocators_history_becomes_the_simulators_stream(torch):
    from benchmarks.sweep.step_questions import trace_events
    from memcalc.engine.allocator.replay import simulate

    history = [
        {"action": "free_completed", "addr": 7, "size": 9},  # taken before the history began
        {"action": "segment_alloc", "addr": 0, "size": 2 << 20},
        {"action": "alloc", "addr": 0, "size": 1000},
        {"action": "free_requested", "addr": 0, "size": 1000},
        {"action": "free_completed", "addr": 0, "size": 1000},
        {"action": "alloc", "addr": 0, "size": 600},  # the same address, another block
        {"action": "segment_alloc", "addr": 99, "size": 20 << 20},
        {"action": "alloc", "addr": 99, "size": 5 << 20},
        {"action": "segment_free", "addr": 99, "size": 20 << 20},
        {"action": "snapshot", "free_mem": 3},
    ]
    events, sizes, kept = trace_events(history)
    assert events == [0, ~0, 1, 2] and sizes == [1000, 600, 5 << 20]
    assert " ".join(kept) == "S2097152 a1000 f0 a600 S20971520 a5242880 s20971520"
    found = simulate(events, sizes, check=True)
    assert found.peak_reserved_bytes == 22 << 20 and found.peak_allocated_bytes == 1024 + (5 << 20)


def test_questions_for_cuda_run_through_with_stand_in_counters(torch, monkeypatch, tmp_path):
    from benchmarks.sweep import device_questions

    alloc = {"action": "alloc", "addr": 1, "size": 4096, "stream": 0}
    stand_in_for_cuda(monkeypatch, torch, trace=[alloc])
    monkeypatch.setattr(device_questions.subprocess, "run", _no_program)
    cpu = torch.device("cpu")
    found = device_questions.cublas_workspace(cpu, True)
    assert [r["error"] for r in found["steps"] if "fp8" not in r["step"]] == [None] * 8
    rows = device_questions.context(cpu, True)["rows"]
    assert rows[0]["outside_bytes"] == 1 << 30 and rows[0]["outside_less_before_bytes"] is None
    assert len(rows) == 10
    monkeypatch.setattr(torch, "empty", _two_then_full(torch))
    assert device_questions.total_bytes(cpu, True)["torch_total_bytes"] == 2 << 30
    monkeypatch.undo()


def test_a_replayed_step_is_held_against_the_allocators_own_peaks(torch, monkeypatch):
    from benchmarks.sweep import step_questions

    history = [
        {"action": "segment_alloc", "addr": 1, "size": 2 << 20, "stream": 0},
        {"action": "alloc", "addr": 1, "size": 4096, "stream": 0},
    ]
    stand_in_for_cuda(monkeypatch, torch, trace=history)
    peaks = {"requested_bytes.all.peak": 4096, "allocated_bytes.all.peak": 4096,
             "reserved_bytes.all.peak": 4 << 20}  # fmt: skip
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda *a: peaks)
    monkeypatch.setattr(step_questions, "_step", lambda spec, device: _Steps())
    spec = tiny_setups()[0]
    found = step_questions._replay(spec, torch.device("cpu"), keep=True)
    assert found["allocated_ratio"] == 1.0 and found["reserved_ratio"] == 0.5
    assert found["history"] == "S2097152 a4096" and found["segments_got"] == 1
    assert found["label"] == spec.label()


class _Steps:
    def run(self):
        return None


def _two_then_full(torch):
    left = [2]

    def empty(*shape, **options):
        if not left[0]:
            raise torch.cuda.OutOfMemoryError("full")
        left[0] -= 1
        return torch.zeros(1)

    return empty


def _no_program(*words, **options):
    raise FileNotFoundError("nvidia-smi")


def test_nvidia_smis_rows_become_bytes(torch, monkeypatch):
    from benchmarks.sweep import device_questions

    def run(words, **options):
        rows = "0, 611, 143771\n1, 5, 143771" if "gpu" in words[1] else f"{os.getpid()}, 512"
        return subprocess.CompletedProcess(words, 0, stdout=rows)

    monkeypatch.setattr(device_questions.subprocess, "run", run)
    assert device_questions._smi_bytes(torch.device("cuda", 0)) == {
        "smi_used_bytes": 611 << 20, "smi_total_bytes": 143771 << 20, "smi_process_bytes": 512 << 20,
    }  # fmt: skip


def test_a_large_trace_is_thinned_to_gpu_work_and_marks(torch, tmp_path):
    from benchmarks.sweep.step_questions import thin
    from memcalc.harness.watch.kernel_trace import shares_of

    source = ROOT / "tests" / "data" / "kineto_v100_step.json"
    path = tmp_path / "t.json.gz"
    path.write_bytes(source.read_bytes())
    before = shares_of(path)
    thin(path)
    after = shares_of(path)
    assert path.stat().st_size < 3000 and after["kernel_s"] == before["kernel_s"]
    assert after["span_s"] == before["span_s"]
