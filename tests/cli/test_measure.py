"""`memcalc measure` from the command line: what it prints, keeps, refuses, and how it ends."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from memcalc.engine.memory import step_memory
from memcalc.harness import host, measured_run, records
from memcalc.harness.record_head import planned
from memcalc.harness.step import TrainingStep
from tests.cli.conftest import Outcome

Run = Callable[..., Outcome]
_CONFIG = {
    "model_type": "llama", "vocab_size": 500, "hidden_size": 64, "intermediate_size": 176,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 256, "hidden_act": "silu", "rms_norm_eps": 1e-5,
}  # fmt: skip
_CEILING = {"n": 2048, "dtype": "bf16", "flops_per_s": 2e11, "calls": 5}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the model and the user's records are; no matmul is timed."""
    (tmp_path / "config.json").write_text(json.dumps(_CONFIG))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(measured_run, "measured_ceiling", lambda *_: _CEILING)
    return tmp_path


@pytest.fixture
def measure(memcalc: Run, folder: Path) -> Run:
    """`memcalc measure` of a small model on the CPU."""

    def run(*words: object) -> Outcome:
        return memcalc("measure", folder / "config.json", "--device", "cpu", "--seq", 64,
                       "--steps", 3, "--warmup", 1, *words)  # fmt: skip

    return run


def _kept(folder: Path) -> list[dict[str, Any]]:
    path = folder / "data" / "memcalc" / "records.jsonl"
    return records.read(path) if path.exists() else []


def test_the_page_says_what_was_measured_and_how(measure: Run, folder: Path) -> None:
    outcome = measure("--reference", 1000)
    assert outcome.status == 0
    assert max(map(len, outcome.out.splitlines())) <= 80 and outcome.out.isascii()
    for said in (
        "2 layers, on", "norm decomposed", "Peak memory", "Phase", "forward/lm_head",
        "At the peak, ", "median of 3", "tokens/s", "measured peak, 2048^3 bf16",
        "full square", "causal", "of the reference", "fell", "a CPU has no such counters",
    ):  # fmt: skip
        assert said in outcome.out
    path = folder / "data" / "memcalc" / "records.jsonl"
    assert outcome.err.splitlines()[-1] == f"note: record appended to {path}"
    assert "\r" not in outcome.err and "\x1b" not in outcome.err + outcome.out


def test_json_is_the_record_that_was_kept(measure: Run, folder: Path) -> None:
    outcome = measure("--json", "--precision", "bf16", "--recompute", "full")
    (kept,) = _kept(folder)
    assert outcome.status == 0 and outcome.err == "" and outcome.json == kept
    said = step_memory(planned(kept["setup"]))
    assert kept["memory"]["peak_requested_bytes"] == said.peak_bytes
    assert kept["setup"]["training"]["recompute"] == "full"
    assert kept["setup"]["kernels"]["device"] == "cpu"


def test_a_gpus_page_fits_80_columns(measure: Run) -> None:
    """A GPU's figures put in by hand: what the page makes of them."""
    from memcalc.output.console import render
    from memcalc.output.measure_text import measure_page

    record = measure("--json", "--no-record").json
    kinds = ("requested_bytes", "allocated_bytes", "active_bytes", "reserved_bytes")
    most = dict.fromkeys(kinds, 150_109_946_880)
    record["memory"] |= {
        "allocator": {"step": {"peak": most, "phases": dict.fromkeys(
            ("forward", "loss", "backward", "optimizer", "zero_grad"), most)}},
        "driver": {"method": "nvml process"}, "peak_allocated_bytes": 150_109_946_880,
        "peak_active_bytes": 150_109_946_880, "device_used_bytes": 150_109_946_880,
        "unseen_bytes": {"forward": 64 << 20, "backward": 96 << 20},
    }  # fmt: skip
    record["device"] |= {"name": "NVIDIA H200", "type": "cuda", "cuda": "13.0", "driver": "580.1"}
    ratios = {"mfu": 0.6, "mfu_causal": 0.57, "hfu": 0.8}
    sheet = {"source": "h200-141gb", "dtype": "bf16", "flops_per_s": 989.4e12, **ratios}
    record["utilisation"]["datasheet"] = sheet
    low_high = {"min": 1.2e9, "median": 1.9e9, "max": 1.98e9}
    record["readings"] = {"sm_clock_hz": low_high, "power_w": None, "throttle": {"power-cap": 0.5}}
    record["profile"] = {"tensor_core_share": 0.7, "idle_share": 0.02, "communication_share": None}
    text = render(lambda page: measure_page(page, record, {}))
    assert max(map(len, text.splitlines())) <= 80
    for said in ("139.80 GiB", "datasheet, h200-141gb bf16 dense", "57.0%", "CUDA 13.0", "70.0%",
                 "clocks held back by power-cap: 50%", "SM clock, MHz", "nvml process"):  # fmt: skip
        assert said in text
    assert "forward 64.00 MiB, backward 96.00 MiB" in " ".join(text.split())
    assert "not measured" in text  # reserved bytes, and a share nobody could tell


def test_quiet_is_one_line(measure: Run) -> None:
    outcome = measure("-q")
    assert outcome.err == "" and len(outcome.out.splitlines()) == 1
    words = outcome.out.split()
    assert words[0] == "tokens/s" and float(words[1]) > 0
    assert words[-2:] == ["status", "ok"] and "allocated none" in outcome.out


def test_records_go_where_they_are_told(measure: Run, folder: Path) -> None:
    path = folder / "mine.jsonl"
    assert measure("-q", "--records", path).status == measure("-q", "--records", path).status == 0
    assert len(records.read(path)) == 2 and not _kept(folder)
    assert measure("-q", "--no-record").status == 0
    assert not _kept(folder)


def test_set_has_the_last_word_on_kernels(measure: Run) -> None:
    outcome = measure("--json", "--no-record", "--set", "kernels.norm=hand")
    assert outcome.json["setup"]["kernels"]["norm"] == "hand"


def test_out_takes_the_result(measure: Run, folder: Path) -> None:
    assert measure("--no-record", "--out", folder / "r.json").out == ""
    assert json.loads((folder / "r.json").read_text())["status"] == "ok"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--device", "cuda:9"], "--device: got 'cuda:9'"),
        (["--device", "gpu"], "--device: got 'gpu'"),
        (["--steps", "0"], "--steps: got 0"),
        (["--optimizer", "lion"], "optimizer: got 'lion'"),
        (["--stack", "hf"], "stack: got 'hf'"),
        (["--attention", "cudnn"], "attention: got 'cudnn'"),
        (["--tp", "2"], "tp: got 2 in one process; rule: run under torchrun"),
        (["--fsdp"], "--fsdp: got one process; rule: run under torchrun"),
        (["--records", "/"], "records: got directory '/'"),
        (["--records", "/dev/null"], "no regular file"),
        (["--records", "x", "--no-record"], "--no-record: got --records x too"),
        (["--reference", "-5"], "reference: got -5"),
    ],
)
def test_bad_input_is_one_line_and_no_record(
    measure: Run, folder: Path, words: list[str], said: str
) -> None:
    if torch.cuda.is_available() and "cudnn" in words:
        pytest.skip("the device has this kernel")
    outcome = measure(*words)
    assert outcome.status == 2 and said in outcome.error
    assert not _kept(folder)


def test_without_torch_it_says_how_to_get_it(memcalc: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: None if name == "torch" else found(name, *more),
    )
    outcome = memcalc("measure", "gpt2")
    assert outcome.status == 2
    assert outcome.error == "torch is not installed; rule: pip install torch"


def test_a_model_too_large_for_the_host_is_refused_and_recorded(
    measure: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "available_bytes", lambda: 1 << 20)
    outcome = measure()
    assert outcome.status == 2 and "memory: got a step of" in outcome.error
    assert [record["status"] for record in _kept(folder)] == ["refused"]


def _breaks(monkeypatch: pytest.MonkeyPatch, at: int, error: BaseException) -> None:
    run, count = TrainingStep.run, [0]

    def broken(self: TrainingStep, *how: Any, **more: Any) -> Any:
        count[0] += 1
        if count[0] == at:
            raise error
        return run(self, *how, **more)

    monkeypatch.setattr(TrainingStep, "run", broken)


@pytest.mark.parametrize(
    ("error", "status", "word", "said"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), 3, "oom",
         "out of memory asking for 2.00 GiB (stage timed steps)"),
        (KeyboardInterrupt(), 130, "interrupted", "interrupted in timed steps, 1 timed steps kept"),
        (RuntimeError("CUDA error: illegal address"), 1, "failed",
         "RuntimeError: CUDA error: illegal address (stage timed steps"),
    ],
    ids=["oom", "interrupted", "failed"],
)  # fmt: skip
def test_a_run_that_ends_badly_is_kept_and_said(
    measure: Run, folder: Path, monkeypatch: pytest.MonkeyPatch,
    error: BaseException, status: int, word: str, said: str,
) -> None:  # fmt: skip
    _breaks(monkeypatch, 4, error)
    outcome = measure()
    (kept,) = _kept(folder)
    assert (outcome.status, kept["status"]) == (status, word)
    assert len(kept["time"]["step_s"]) == 1 and "median of 1" in outcome.out
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: {said}")


def test_a_run_that_does_not_train_is_said_and_exits_4(
    measure: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flat = torch.tensor(6.0)
    run = TrainingStep.run
    monkeypatch.setattr(
        TrainingStep, "run", lambda self, *how, **more: (run(self, *how, **more), flat)[1]
    )
    outcome = measure()
    assert outcome.status == 4 and "DID NOT FALL" in outcome.out
    assert "error: loss: got 6 first and 6 last on one fixed batch; rule: it falls" in outcome.err
    assert [record["loss_fell"] for record in _kept(folder)] == [False]


def test_ctrl_c_in_another_process_keeps_the_record(folder: Path) -> None:
    words = [sys.executable, "-m", "memcalc", "measure", str(folder / "config.json"), "--device",
             "cpu", "--seq", "64", "--warmup", "1", "--steps", "100000", "--threads", "1"]  # fmt: skip
    start = (
        "import sys; from memcalc.harness import measured_run as m; run = m.MeasuredRun._timed\n"
        "m.MeasuredRun._timed = lambda self: (print('timed', file=sys.stderr, flush=True), run(self))\n"
        "from memcalc.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    words[1:3] = ["-c", start]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    assert process.stderr is not None and process.stderr.readline() == "timed\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in err
    assert err.splitlines()[-1].startswith("error: interrupted in timed steps")
    (kept,) = _kept(folder)
    assert kept["status"] == "interrupted" and kept["time"]["first_step_s"] > 0
