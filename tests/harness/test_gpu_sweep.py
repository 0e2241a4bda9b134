"""The GPU sweep: its stages with scripted children, resuming, deadlines, and a whole tiny run."""

from __future__ import annotations

import collections
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.sweep import decode_stage, stages, time_stages
from benchmarks.sweep.children import ChildFailed, Clock
from benchmarks.sweep.predictions import device_for, guess_s
from benchmarks.sweep.questions import BY_ID, QUESTIONS
from benchmarks.sweep.setups import Spec, memory_setups, tiny_setups
from memcalc.harness import records
from tests.harness.sweep_support import FACTS, measured, sweep_of
from tests.harness.sweep_support import predict_once as predict

ROOT = Path(__file__).parents[2]
H100 = {"type": "cuda", "name": "NVIDIA H100 80GB HBM3", "total_bytes": 84_929_347_584}
MAIN = [s for s in memory_setups() if not s.expects_oom]
PLAIN = [s for s in MAIN if not s.compiled]


# --- stages, with scripted children ---------------------------------------------------------------


def answer_ok(number, job):
    return measured(job, peak_allocated_bytes=1000)


def measured_jobs(script):
    return [(n, job) for n, job in script.asked if job["kind"] == "measure"]


def test_setups_of_a_group_share_a_process_small_ones_first(tmp_path, monkeypatch):
    sweep, script = sweep_of(tmp_path, monkeypatch, answer_ok)
    stages.memory(sweep)
    by_child = collections.defaultdict(list)
    for number, job in measured_jobs(script):
        by_child[number].append(job)
    groups = [jobs for jobs in by_child.values() if len(jobs) > 1]
    for jobs in groups:
        assert len({j["training"]["precision"] for j in jobs}) == 1
        assert len({j["training"].get("stack") for j in jobs}) == 1
    device = device_for(FACTS)
    for jobs in groups:
        sizes = [
            predict(Spec(j["model"], j["training"], j["kernels"]), device, "cuda")["memory"]
            for j in jobs
        ]
        peaks = [size["peak_requested_bytes"] for size in sizes]
        assert peaks == sorted(peaks)
    kept = sweep.kept.of("measure", "NVIDIA H200")
    controls = [r for r in kept if r["sweep"]["role"] == "control"]
    assert len(controls) >= len(PLAIN) // stages.CONTROL_EVERY
    main = {r["sweep"]["key"]: r["sweep"]["job"] for r in kept if r["sweep"]["role"] == "main"}
    assert all(r["sweep"]["key"] in main and r["sweep"]["job"] == 1 for r in controls)
    assert sum(r["sweep"]["expects_oom"] for r in kept) == 2
    assert all("memory" in r["estimate"] for r in kept)


def test_what_earlier_calls_have_is_not_measured_again(tmp_path, monkeypatch):
    sweep, script = sweep_of(tmp_path, monkeypatch, answer_ok)
    stages.memory(sweep)
    first = len(measured_jobs(script))
    later, script = sweep_of(tmp_path / "b", monkeypatch, answer_ok, have=[tmp_path / "out"])
    stages.memory(later)
    assert first > 120 and not measured_jobs(script)
    assert later.counts["memory"]["had before"] == first
    other = {**FACTS, "name": "NVIDIA H100 80GB HBM3"}  # another card measures for itself
    elsewhere, script = sweep_of(
        tmp_path / "c",
        monkeypatch,
        answer_ok,
        have=[tmp_path / "out" / "records.jsonl"],
        facts=other,
    )
    stages.memory(elsewhere)
    assert len(measured_jobs(script)) == first


def test_failed_setups_are_tried_again_and_out_of_memory_is_a_result(tmp_path, monkeypatch):
    def answer(number, job):
        status = (
            "oom" if job["model"] == "gpt2" else "failed" if job["model"] == "gpt2-xl" else "ok"
        )
        return measured(job, status)

    sweep, script = sweep_of(tmp_path, monkeypatch, answer)
    stages.memory(sweep)
    failed = sweep.counts["memory"]["failed"]
    assert failed >= 4 and sweep.counts["memory"]["oom"] >= 4
    later, script = sweep_of(tmp_path / "b", monkeypatch, answer, have=[tmp_path / "out"])
    stages.memory(later)
    assert len(measured_jobs(script)) == failed
    assert {job["model"] for _, job in measured_jobs(script)} == {"gpt2-xl"}


def test_a_process_that_hangs_dies_or_fails_is_replaced(tmp_path, monkeypatch):
    bad = {"llama-1.3b": ChildFailed("timeout", "no answer in 90 s")}

    def answer(number, job):
        return bad.get(job["model"]) or measured(job)

    sweep, script = sweep_of(tmp_path, monkeypatch, answer)
    stages.memory(sweep)  # FakeChild refuses to be asked after its end
    rows = sweep.kept.of("measure", "NVIDIA H200")
    lost = [r for r in rows if r["status"] == "failed"]
    assert len(lost) >= 4 and all("timeout" in r["error"]["message"] for r in lost)
    assert all(r["setup"]["model"]["name"] == "llama-1.3b" for r in lost)
    assert len(rows) > 130


def test_an_unclean_process_is_replaced_and_the_setup_measured_in_a_new_one(tmp_path, monkeypatch):
    seen = collections.Counter()

    def answer(number, job):
        seen[number] += 1
        if number and seen[number] == 3:
            return {"status": "unclean", "held": {"allocated_bytes": 512}}
        return measured(job)

    sweep, script = sweep_of(tmp_path, monkeypatch, answer)
    stages.memory(sweep)
    assert sweep.counts["memory"]["process replaced"] >= 3
    assert all(r["status"] == "ok" for r in sweep.kept.of("measure", "NVIDIA H200"))
    unclean = [child for child in script.children if seen[child.number] >= 3]
    assert unclean and all(seen[child.number] == 3 and child.closed for child in unclean[1:])


def test_memory_left_behind_ends_the_process(tmp_path, monkeypatch):
    def answer(number, job):
        return measured(job, held_after={"allocated_bytes": 2048, "reserved_bytes": 1 << 21})

    sweep, script = sweep_of(tmp_path, monkeypatch, answer)
    stages.memory(sweep)
    assert {child.jobs for child in script.children} <= {0, 1}  # 0: made ready, not needed


def test_nothing_is_begun_that_would_not_end_in_time(tmp_path, monkeypatch):
    sweep, script = sweep_of(tmp_path, monkeypatch, answer_ok, minutes=16 / 60)
    stages.memory(sweep)
    stages.questions(sweep)
    time_stages.calibration(sweep)
    time_stages.mfu(sweep)
    time_stages.residual(sweep)
    tally = sweep.counts
    assert set(tally["memory"]) <= {"no time", "refused"} | {
        w for w in tally["memory"] if "stack" in w
    }
    blocked = [q.id for q in QUESTIONS if q.blocked]
    assert tally["questions"] == {"no time": len(QUESTIONS) - len(blocked), "skipped": len(blocked)}
    assert tally["calibration"] == tally["residual"] == {"no time": 1}
    assert tally["mfu"] == {"no time": 4}
    assert script.asked == []


def test_long_setups_wait_for_another_call_and_short_ones_are_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(Clock, "learn", lambda self, kind, guess, spent: None)
    sweep, script = sweep_of(tmp_path, monkeypatch, answer_ok, minutes=22 / 60)
    stages.memory(sweep)
    device = device_for(FACTS)
    guesses = [
        guess_s(spec, predict(spec, device, "cuda"), "cuda")
        for spec in (Spec(j["model"], j["training"], j["kernels"]) for _, j in script.asked)
    ]
    assert len(guesses) > 100 and max(guesses) < 19
    assert sweep.counts["memory"]["no time"] >= 3


def test_what_cannot_be_stated_or_does_not_fit_is_counted_not_run(tmp_path, monkeypatch):
    wrong = Spec("gpt2", {**tiny_setups()[0].training, "stack": "no-such-stack"}, {})
    large = [spec for spec in memory_setups() if spec.expects_oom][0]._replace(expects_oom=False)
    monkeypatch.setattr(stages, "memory_setups", lambda: [wrong, large])
    sweep, script = sweep_of(tmp_path, monkeypatch, answer_ok)
    stages.memory(sweep)
    assert not measured_jobs(script)
    said = list(sweep.counts["memory"])
    assert said[0].startswith("refused: stack") or said[1].startswith("refused: stack")
    assert "predicted not to fit" in said


def test_questions_that_need_it_get_a_process_of_their_own_before_any_other(tmp_path, monkeypatch):
    def answer(number, job):
        status = "failed" if job["id"] == "scatter" else "ok"
        record = {"schema": 1, "kind": "question", "id": job["id"], "status": status,
                  "device": {"name": "NVIDIA H200"}}  # fmt: skip
        return {"status": status, "record": record}

    sweep, script = sweep_of(tmp_path, monkeypatch, answer)
    stages.questions(sweep)
    alone = [q.id for q in QUESTIONS if q.fresh]
    assert [job["id"] for _, job in script.asked][: len(alone)] == alone == [
        q.id for q in QUESTIONS[: len(alone)]
    ]  # fmt: skip
    users = collections.defaultdict(set)
    for number, job in script.asked:
        users[number].add(job["id"])
    assert all({name} in users.values() for name in alone)
    after = [n for n, job in script.asked if job["id"] == "rms-norm"]
    before = [n for n, job in script.asked if job["id"] == "scatter"]
    assert after != before  # a process whose question failed is not used on
    later, script = sweep_of(tmp_path / "b", monkeypatch, answer, have=[tmp_path / "out"])
    stages.questions(later)
    assert [job["id"] for _, job in script.asked] == ["scatter"]


def test_mfu_runs_go_on_where_an_earlier_call_stopped(tmp_path, monkeypatch):
    def answer(number, job):
        [mode] = job["modes"]
        if job["case"] == "1.3b" and mode == "compiled":
            return ChildFailed("timeout", "compiling")
        rows = [{"name": f"memcalc {mode}", "status": "ok"}]
        record = {"schema": 1, "kind": "mfu", "case": job["case"], "status": "ok", "runners": rows,
                  "settings": {"attention": "cudnn", "loss": "chunked"},
                  "device": {"name": "NVIDIA H200"}}  # fmt: skip
        return {"status": "ok", "record": record}

    sweep, script = sweep_of(tmp_path, monkeypatch, answer)
    time_stages.mfu(sweep)
    asked = [(job["case"], *job["modes"], job["settings"]) for _, job in script.asked]
    chosen = {"attention": "cudnn", "loss": "chunked"}
    assert asked == [
        ("1.3b", "eager", None), ("1.3b", "compiled", chosen), ("8b-slice", "eager", None),
        ("8b-slice", "compiled", chosen),
    ]  # fmt: skip
    later, script = sweep_of(tmp_path / "b", monkeypatch, answer, have=[tmp_path / "out"])
    time_stages.mfu(later)
    assert [(job["case"], *job["modes"]) for _, job in script.asked] == [("1.3b", "compiled")]


@pytest.mark.parametrize("late", [0, 7])
def test_a_calibration_cut_short_is_made_again(tmp_path, monkeypatch, late):
    def answer(number, job):
        record = {"schema": 1, "kind": "calibration-run", "status": "ok", "late": late,
                  "device": {"name": "NVIDIA H200"}}  # fmt: skip
        return {"status": "ok", "record": record}

    sweep, script = sweep_of(tmp_path, monkeypatch, answer)
    time_stages.calibration(sweep)
    time_stages.calibration(sweep)
    assert len(script.asked) == (2 if late else 1)


# --- the whole program ----------------------------------------------------------------------------


def run(*words, **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "benchmarks.gpu_sweep", *map(str, words)]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=540, env=environment, **options
    )


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("sweep") / "out"
    return run("--tiny", "--device", "cpu", "--out", folder, "--minutes", 8), folder


def test_the_whole_programme_runs_tiny_on_a_cpu(tiny_run):
    done, folder = tiny_run
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr == ""  # no terminal: no bar; children's stderr is in the log
    files = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert set(files) == {
        "records.jsonl", "questions.jsonl", "mfu.jsonl", "calibration.toml", "trace.json.gz",
        "summary.json", "log.txt", "timing.jsonl",
    }  # fmt: skip
    assert max(files.values()) < 16 << 20
    said = json.loads((folder / "summary.json").read_text())
    assert not said["interrupted"] and said["device"]["type"] == "cpu"
    assert said["stages"]["memory"] == {"ok": 6} and said["stages"]["decode"] == {"ok": 2}
    assert said["stages"]["calibration"] == said["stages"]["residual"] == {"ok": 1}
    assert set(said["stages"]["questions"]) == {"ok", "skipped"}
    assert "Predicted over measured" in done.stdout and "requested" in done.stdout


def test_tiny_setups_need_exactly_what_was_predicted(tiny_run):
    _, folder = tiny_run
    said = json.loads((folder / "summary.json").read_text())
    exact = said["errors"]["requested"]
    assert exact["n"] == 5 and exact["worst"] == 0.0
    kept = records.read(folder / "records.jsonl")
    assert [r["sweep"]["role"] for r in kept].count("control") == 1
    for record in kept:
        assert record["loss_fell"] and record["memory"]["peak_reserved_bytes"] is None
        said, seen = record["estimate"]["memory"]["phases"], record["memory"]["phases"]
        assert said == {name: seen[name] for name in said} and len(said) >= 4


def test_generations_need_exactly_what_was_predicted(tiny_run):
    _, folder = tiny_run
    kept = records.read(folder / "timing.jsonl")
    found = [r for r in kept if r["kind"] == decode_stage.KIND]
    assert len(found) == 2
    for record in found:
        rows = {row["name"]: row["verdict"] for row in record["comparison"]["rows"]}
        assert rows["peak in prefill"] == rows["peak in decode"] == "equal"
        assert record["comparison"]["verified"] and record["time"]["time_per_output_token_s"] > 0


def test_questions_say_what_a_cpu_cannot_answer_and_why(tiny_run):
    _, folder = tiny_run
    found = {r["id"]: r for r in records.read(folder / "questions.jsonl") if "id" in r}
    assert set(found) == set(BY_ID)
    for name, question in BY_ID.items():
        if question.needs_cuda or question.blocked:
            assert found[name]["status"] == "skipped" and found[name]["reason"]
    assert found["accumulation"]["answer"]["sums_in_place"]
    assert found["trace"]["answer"]["idle_share"] is None


def test_mfu_and_residual_records_hold_every_step(tiny_run):
    _, folder = tiny_run
    found = {r["kind"]: r for r in records.read(folder / "mfu.jsonl")}
    row = next(r for r in found["mfu"]["runners"] if r["name"] == "memcalc eager")
    assert [len(turn) for turn in row["turns_s"]] == [2, 2] and row["loss_fell"]
    times = found["residual"]["modes"]["eager"]
    assert all(len(times["layers"][n]["step_s"]) == 3 for n in ("2", "4"))
    assert math.isclose(times["rest_s"] + 2 * times["block_s"], times["layers"]["2"]["median_s"])


def test_a_second_call_has_nothing_left_to_do(tiny_run, tmp_path):
    _, folder = tiny_run
    again = run("--tiny", "--device", "cpu", "--out", tmp_path, "--have", folder, "--minutes", 8)
    assert again.returncode == 0, again.stderr[-2000:]
    said = json.loads((tmp_path / "summary.json").read_text())
    assert said["stages"] == {
        "memory": {"had before": 6}, "calibration": {"had before": 1}, "mfu": {"had before": 1},
        "decode": {"had before": 2}, "residual": {"had before": 1}, "timing": {"had before": 2},
    }  # fmt: skip
    assert said["errors"]["requested"]["n"] == 5  # the table covers what was had


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--stage", "memmory"), "--stage: got 'memmory', not known; nearest: memory"),
        (("--minutes", "0"), "--minutes: got 0; rule"),
        (("--have", "nowhere.jsonl"), "--have: got 'nowhere.jsonl', not there"),
        (("--device", "tpu", "--minutes", "1"), "--device: got 'tpu'"),
        (("--frobnicate",), "No such option"),
    ],
    ids=["stage", "minutes", "have", "device", "option"],
)
def test_wrong_words_are_one_line_and_status_2(tmp_path, words, said):
    done = run("--out", tmp_path / "o", *words)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and said in done.stderr
    assert done.stderr.count("\n") == 1


def test_ctrl_c_keeps_whole_records_and_leaves_no_process(tmp_path):
    pytest.importorskip("torch")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = ["--tiny", "--device", "cpu", "--out", str(tmp_path), "--stage", "memory"]
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.gpu_sweep", *words], cwd=ROOT, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    path = tmp_path / "records.jsonl"
    end = time.monotonic() + 300
    while time.monotonic() < end and not (path.exists() and path.stat().st_size):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 130
    assert json.loads((tmp_path / "summary.json").read_text())["interrupted"]
    assert path.read_bytes().endswith(b"\n") and records.read_file(path).broken == []
    listed = subprocess.run(["ps", "-eo", "ppid,args"], capture_output=True, text=True).stdout
    mine = [line for line in listed.splitlines() if line.split()[0] == str(process.pid)]
    assert mine == []
