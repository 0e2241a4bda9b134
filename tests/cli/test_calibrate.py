"""memcalc calibrate: where the profile goes, what is shown, and every way it can go wrong."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from memcalc.inputs import calibrations

_STOP_AFTER = 9  # tasks: the ceilings, copies and a few products


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's own folder, empty."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config" / "memcalc" / "calibrations"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real micro-benchmarks, but few and tiny."""
    from memcalc.harness.calibration import calibrate, microbench

    tasks_of = calibrate.tasks_of
    monkeypatch.setattr(calibrate, "CPU", microbench.SMALL)
    monkeypatch.setattr(calibrate, "tasks_of", lambda scale: tasks_of(scale)[:_STOP_AFTER])


@pytest.mark.usefixtures("quick")
def test_the_profile_goes_to_the_users_calibrations(memcalc: Any, config: Path) -> None:
    outcome = memcalc("calibrate", "--device", "cpu", "--threads", "1")
    [path] = config.glob("*.toml")
    profile = calibrations.read(path)
    assert outcome.status == 0 and path.stem == profile["name"]
    assert "-1t-torch-" in path.stem and len(profile["points"]) == _STOP_AFTER
    assert f"calibration {path.stem}" in outcome.out and "gemm" not in outcome.err
    assert max(map(len, outcome.out.splitlines())) <= 80
    assert outcome.err == f"note: calibration written to {path}\n"
    again = memcalc("calibrate", "--device", "cpu", "--threads", "1")
    assert (
        again.err == f"note: calibration written to {path}, in place of that of {profile['date']}\n"
    )
    assert [entry.name for entry in calibrations.measured_entries()] == [path.stem]


@pytest.mark.usefixtures("quick")
def test_a_toml_file_receives_the_profile(memcalc: Any, config: Path, tmp_path: Path) -> None:
    target = tmp_path / "my-card.toml"
    target.write_text("something else")
    outcome = memcalc("calibrate", "-o", target, "--json", "--device", "cpu")
    assert outcome.status == 0 and outcome.json == calibrations.read(target)
    assert "in place of a file that was no valid calibration" in outcome.err
    assert not list(config.glob("*"))
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["my-card.toml"]


@pytest.mark.usefixtures("quick")
def test_a_json_file_receives_the_same_as_json(memcalc: Any, config: Path, tmp_path: Path) -> None:
    target = tmp_path / "my-card.json"
    outcome = memcalc("calibrate", "-o", target, "--device", "cpu")
    profile = json.loads(target.read_text())
    assert outcome.status == 0 and outcome.out == "" and not list(config.glob("*"))
    calibrations.check(profile, "it")


@pytest.mark.usefixtures("quick")
def test_quiet_is_one_line_and_no_notes(memcalc: Any, config: Path) -> None:
    outcome = memcalc("calibrate", "-q", "--device", "cpu")
    [path] = config.glob("*.toml")
    assert outcome.err == "" and len(outcome.out.splitlines()) == 1
    words = outcome.out.split()
    assert words[0] == path.stem and words[-1] == str(path)
    assert float(words[2]) == pytest.approx(calibrations.ceiling(calibrations.read(path)), abs=1)


def _defaults() -> list[str]:
    return [e.name for e in calibrations.entries() if e.name.startswith("default-")]


def test_the_defaults_are_listed_and_shown(memcalc: Any, config: Path) -> None:
    rows = memcalc("list", "calibrations", "--json").json["entries"]
    assert [row["name"] for row in rows] == _defaults() and "default-hopper" in _defaults()
    assert {row["origin"] for row in rows} == {"package"}
    for name in _defaults():
        shown = memcalc("show", "calibrations", name)
        assert shown.status == 0 and "launch_s" in shown.out
        assert max(len(line) for line in shown.out.splitlines() if "file: " not in line) <= 80
        assert memcalc("show", name, "--json").json["name"] == name


@pytest.mark.usefixtures("quick")
def test_list_show_and_doctor_know_it(memcalc: Any, config: Path) -> None:
    assert "memcalc calibrate" in memcalc("list", "calibrations").out
    assert "memcalc calibrate" in memcalc("doctor").out
    memcalc("calibrate", "-q", "--device", "cpu")
    [path] = config.glob("*.toml")
    profile = calibrations.read(path)
    rows = memcalc("list", "calibrations", "--json").json["entries"]
    [row] = [row for row in rows if row["origin"] == "user"]
    assert row == {
        "name": path.stem, "gemm_flops_per_s": calibrations.ceiling(profile),
        "device": profile["device"]["name"], "torch": profile["torch"], "date": profile["date"],
        "origin": "user",
    }  # fmt: skip
    text = memcalc("list", "calibrations").out
    assert path.stem in text and profile["date"][:10] in text
    counts = {e["name"]: e["count"] for e in memcalc("list", "--json").json["entries"]}
    assert counts["calibrations"] == len(rows) == 1 + len(_defaults())
    for words in (("calibrations", path.stem), (path.stem,), ("calibrations", path)):
        shown = memcalc("show", *words)
        assert shown.status == 0 and f"calibration {path.stem}" in shown.out
        assert max(map(len, shown.out.splitlines())) <= 80 + len(str(path))
    found = memcalc("show", path.stem, "--json").json
    assert found["kind"] == "calibrations" and found["points"] == profile["points"]
    assert f"{path.stem} (user)" in memcalc("doctor", "--json").json["calibration"]


@pytest.mark.parametrize("content", ["x = ", 'kind = "calibration"\nschema = 1\n', "\x00", ""])
def test_a_broken_file_costs_a_line_and_no_more(memcalc: Any, config: Path, content: str) -> None:
    config.mkdir(parents=True)
    (config / "broken.toml").write_text(content)
    listed = memcalc("list", "calibrations")
    assert listed.status == 0 and "broken.toml" in listed.err and len(listed.err.splitlines()) == 1
    for words in (("broken",), ("calibrations", "broken")):
        outcome = memcalc("show", *words)
        assert outcome.status == 2 and "broken.toml" in outcome.error
    assert memcalc("doctor").status == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("gpt2",), "too many"),
        (("--device", "tpu"), "--device"),
        (("--threads", "0"), "--threads"),
        (("--threads", "many"), "--threads"),
        (("--out", "/nowhere/at/all.toml"), "folder that exists"),
        (("--out", "x\x00.toml"), "a file name"),
        (("--out", "~nobody-of-that-name/x.toml"), "folder that exists"),
        (("--seq", "8"), "not an option of calibrate"),
    ],
)
def test_bad_input_is_refused_before_measuring(
    memcalc: Any, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], said: str
) -> None:
    from memcalc.harness.calibration import calibrate

    monkeypatch.setattr(calibrate, "tasks_of", lambda scale: pytest.fail("measured"))
    outcome = memcalc("calibrate", *words)
    assert outcome.status == 2 and said in outcome.error


def test_a_folder_that_cannot_be_made_is_said_at_once(memcalc: Any, config: Path) -> None:
    config.parent.parent.mkdir()
    config.parent.write_text("a file where the folder should be")
    outcome = memcalc("calibrate", "--device", "cpu")
    assert outcome.status == 2 and "rule: --out FILE" in outcome.error
    directory = config.parents[2] / "it.toml"
    directory.mkdir()
    assert "directory" in memcalc("calibrate", "-o", directory).error


def test_a_path_of_an_unknown_user_is_a_file_that_is_not_there(memcalc: Any) -> None:
    assert "no such" in memcalc("show", "calibrations", "~nobody-of-that-name/x.toml").error.lower()


def test_without_torch_it_says_what_to_install(
    memcalc: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib import util

    monkeypatch.setattr(util, "find_spec", lambda name: None)
    assert "pip install torch" in memcalc("calibrate").error


def test_ctrl_c_leaves_nothing_and_says_so(tmp_path: Path, config: Path) -> None:
    """On a terminal: the bar shows what is measured; stopped, no file is left behind."""
    leader, follower = pty.openpty()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm", "COLUMNS": "120"}
    target = tmp_path / "it.toml"
    words = [sys.executable, "-m", "memcalc", "calibrate", "--device", "cpu", "-o", str(target)]
    process = subprocess.Popen(
        words, stdin=follower, stdout=subprocess.PIPE, stderr=follower, env=environment,
        start_new_session=True,
    )  # fmt: skip
    os.close(follower)
    seen, end = "", time.monotonic() + 300
    while "gemm" not in seen and time.monotonic() < end:
        seen += os.read(leader, 4096).decode(errors="replace")
    process.send_signal(signal.SIGINT)
    try:
        while chunk := os.read(leader, 4096):
            seen += chunk.decode(errors="replace")
    except OSError:  # the other end is closed
        pass
    out, _ = process.communicate(timeout=120)
    os.close(leader)
    assert process.returncode == 130 and out == b""
    assert "calibrate: gemm" in seen and "error: interrupted; nothing was written" in seen
    assert "Traceback" not in seen
    assert not target.exists() and not config.exists()
