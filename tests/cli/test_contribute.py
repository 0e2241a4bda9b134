"""calibrate --contribute: one command, a folder that others can use, and nobody's name in it."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import pytest

from memcalc.cli import contribute
from memcalc.inputs import calibrations

_STOP_AFTER = 3
_TINY = {"model_type": "gpt2", "n_embd": 64, "n_layer": 1, "n_head": 2, "n_positions": 64,
         "vocab_size": 128}  # fmt: skip


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real micro-benchmarks and runs, but few and tiny; a home, a host and a user with names."""
    from memcalc.harness.calibration import calibrate, microbench

    tasks_of = calibrate.tasks_of
    monkeypatch.setattr(calibrate, "CPU", microbench.SMALL)
    monkeypatch.setattr(calibrate, "tasks_of", lambda scale: tasks_of(scale)[:_STOP_AFTER])
    (tmp_path / "config.json").write_text(json.dumps(_TINY))
    more = ("--seq", "8", "--steps", "1", "--warmup", "1")
    runs = {"cpu": ((str(tmp_path / "config.json"), *more),)}
    monkeypatch.setattr(contribute, "RUNS", runs)
    monkeypatch.setenv("HOME", str(tmp_path / "jane"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "jane" / "config"))
    monkeypatch.setattr(platform, "node", lambda: "janes-desk.example")
    monkeypatch.setattr(contribute.getpass, "getuser", lambda: "jane")


def test_a_bundle_has_a_calibration_records_and_environment_and_no_names(
    memcalc: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    outcome = memcalc("calibrate", "--contribute", folder, "--device", "cpu", "--threads", "1")
    assert outcome.status == 0, outcome.err
    assert "contribution written" in outcome.err and "1 runs, " in outcome.err
    names = sorted(path.name for path in folder.iterdir())
    [toml] = folder.glob("*.toml")
    assert names == sorted(["README.md", "environment.json", "records.jsonl", toml.name])
    profile = calibrations.read(toml)
    assert toml.stem == profile["name"]
    [record] = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    assert record["kind"] == "verify" and record["status"] == "ok"
    assert (
        record["estimate"]["memory"]["peak_requested_bytes"]
        == (record["memory"]["peak_requested_bytes"])
    )
    assert record["device"]["platform"] == f"{platform.system()} {platform.machine()}"
    facts = json.loads((folder / "environment.json").read_text())
    assert facts["torch"] == profile["torch"] and facts["device"]["name"]
    for path in folder.iterdir():
        assert not {"jane", "janes-desk", str(tmp_path)} & set(path.read_text().split())
        assert str(tmp_path) not in path.read_text() and "jane" not in path.read_text()
    shown = memcalc("chart", "accuracy", "--record", folder / "records.jsonl", "--json")
    assert shown.status == 0, shown.err  # what is handed in can be read back


def test_names_are_taken_out_of_texts_wherever_they_stand(tmp_path: Path) -> None:
    told = {
        "error": {"message": f"no file {tmp_path}/jane/x.py on janes-desk.example"},
        "device": {"uuid": "GPU-1", "name": "H100", "platform": "Linux-6.1-janes-kernel"},
        "list": ["by jane", 3, None],
    }
    found = contribute.without_names(told)
    text = json.dumps(found)
    assert "jane" not in text and "GPU-1" not in text
    assert found["device"]["name"] == "H100" and found["list"][1:] == [3, None]
    assert found["device"]["platform"] == f"{platform.system()} {platform.machine()}"


def test_a_folder_with_files_is_not_written_to(memcalc: Any, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    outcome = memcalc("calibrate", "--contribute", tmp_path / "full", "--device", "cpu")
    assert outcome.status == 2 and "empty folder" in outcome.error
    outcome = memcalc("calibrate", "--contribute", tmp_path / "new", "-o", tmp_path / "x.toml")
    assert outcome.status == 2 and "--out too" in outcome.error


def test_every_run_of_a_bundle_is_a_setup_that_verify_takes() -> None:
    from memcalc.cli.app import parse_arguments
    from memcalc.cli.request import request_of

    for runs in contribute.RUNS.values():
        for words in runs:
            assert request_of(parse_arguments("verify", list(words))).config.num_hidden_layers
