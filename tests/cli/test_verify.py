"""memcalc verify on a CPU: verdict, exit status, picture, record, bad input."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.calibrated import small_calibration

SMALL = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 500,
    "max_position_embeddings": 256,
}  # fmt: skip
GPT2 = {
    "model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256,
    "vocab_size": 500,
}  # fmt: skip
FAST = (
    "--seq", "48", "--device", "cpu", "--steps", "1", "--warmup", "1", "--threads", "1",
)  # fmt: skip


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No calibrations of whoever runs the tests."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config"


@pytest.fixture
def small(tmp_path: Path) -> Any:
    def write(config: dict[str, Any] = SMALL) -> str:
        path = tmp_path / "config.json"
        path.write_text(json.dumps(config))
        return str(path)

    return write


@pytest.mark.parametrize("config", [SMALL, GPT2], ids=lambda c: c["model_type"])
def test_small_models_verify(memcalc: Any, small: Any, tmp_path: Path, config: Any) -> None:
    records = tmp_path / "records.jsonl"
    outcome = memcalc("verify", small(config), *FAST, "--records", str(records))
    assert outcome.status == 0, outcome.err
    assert "verified: " in outcome.out and "saved for backward" in outcome.out
    assert max(len(line) for line in outcome.out.splitlines()) <= 80
    record = json.loads(records.read_text())
    assert record["kind"] == "verify" and record["comparison"]["verified"]
    assert (
        record["estimate"]["memory"]["peak_requested_bytes"]
        == (record["memory"]["peak_requested_bytes"])
    )


def test_json_and_operators(memcalc: Any, small: Any) -> None:
    outcome = memcalc("verify", small(), *FAST, "--no-record", "--json", "--ops")
    found = json.loads(outcome.out)
    assert found["comparison"]["verified"] is True
    assert {"op", "direction", "calls", "seconds", "predicted_s"} == set(found["ops"][0])
    assert {row["predicted_s"] for row in found["ops"]} == {None}  # no calibration of this CPU


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A calibration of this CPU with one thread, of small sizes."""
    return {**small_calibration(tmp_path_factory), "small": False}


@pytest.fixture
def calibration(measured: dict[str, Any], config: Path) -> Path:
    """The same among the user's."""
    from memcalc.inputs import calibrations

    path = calibrations.user_folder() / f"{measured['name']}.toml"
    path.parent.mkdir(parents=True)
    path.write_text(calibrations.to_text(measured), "utf-8")
    return path


@pytest.mark.parametrize("chosen", ["auto", "file"])
def test_time_is_predicted_by_this_cpus_calibration(
    memcalc: Any, small: Any, calibration: Path, chosen: str
) -> None:
    words = {"auto": (), "name": ("--calibration", calibration.stem),
             "file": ("--calibration", str(calibration))}[chosen]  # fmt: skip
    found = memcalc("verify", small(), *FAST, "--no-record", "--json", *words, "--ops").json
    rows = {row["name"]: row for row in found["comparison"]["rows"] if row["group"] == "time"}
    assert {"step time", "tokens/s", "forward and loss", "backward", "optimizer"} == set(rows)
    time = found["estimate"]["time"]
    assert time["calibration"] == calibration.stem
    assert rows["step time"]["predicted"] == time["step_s"] > 0
    assert rows["step time"]["measured"] == found["time"]["median_s"]
    assert rows["backward"]["measured"] == found["time"]["phases"]["backward_s"]
    assert rows["tokens/s"]["predicted"] == pytest.approx(48 / time["step_s"])
    told = [row["predicted_s"] for row in found["ops"] if row["predicted_s"] is not None]
    kernels = time["forward_s"] + time["backward_s"] + time["recompute_s"]
    assert sum(told) == pytest.approx(kernels + time["optimizer_s"])


def test_a_time_outside_its_band_is_a_verdict(memcalc: Any, small: Any, calibration: Path) -> None:
    text = calibration.read_text()
    slow = calibration.with_name("slow.toml")
    slow.write_text(re.sub(r"(\bseconds = )[0-9.e-]+", r"\g<1>1.0", text))
    outcome = memcalc("verify", small(), *FAST, "--no-record", "--calibration", str(slow))
    assert outcome.status == 4, outcome.err
    assert "not verified: step time +" in outcome.out
    assert max(len(line) for line in outcome.out.splitlines()) <= 80


def test_default_names_no_rates_of_a_cpu(memcalc: Any, small: Any, calibration: Path) -> None:
    words = ("verify", small(), *FAST, "--no-record", "--calibration", "default")
    outcome = memcalc(*words)
    assert outcome.status == 0, outcome.err
    assert "step time: measured only" in outcome.out
    assert memcalc(*words[:-1], "nothing").status == 2


def test_quiet_is_one_line(memcalc: Any, small: Any) -> None:
    outcome = memcalc("verify", small(), *FAST, "--no-record", "--quiet")
    assert outcome.out.startswith("verified worst_error_pct 0 tokens/s ")
    assert outcome.out.count("\n") == 1


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_a_picture_is_drawn(memcalc: Any, small: Any, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"memory.{ending}"
    outcome = memcalc("verify", small(), *FAST, "--no-record", "--quiet", "--chart", str(path))
    assert outcome.status == 0, outcome.err
    magic = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[ending]
    assert path.read_bytes().startswith(magic) and path.stat().st_size > 5000


def test_the_picture_shows_the_measured_bytes(
    memcalc: Any, small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from memcalc.output.charts import timeline
    from memcalc.units import MIB, gib

    drawn: dict[str, Any] = {}
    plain = timeline.draw

    def spy(figure: Any, found: Any) -> None:
        plain(figure, found)
        (axes,) = figure.axes
        line = next(line for line in axes.lines if line.get_gid() == "measured")
        drawn["line"] = line.get_ydata() * MIB
        drawn["top"] = next(t for t in axes.texts if t.get_gid() == "peak text").get_text()

    monkeypatch.setattr(timeline, "draw", spy)
    path = str(tmp_path / "memory.svg")
    words = ("verify", small(), *FAST, "--no-record", "--json", "--chart", path)
    found = json.loads(memcalc(*words).out)
    peak = found["memory"]["peak_requested_bytes"]
    assert round(max(drawn["line"])) == peak
    assert drawn["top"].startswith(f"peak {gib(peak)}: ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--chart", "memory.txt"), "--chart: got 'memory.txt'"),
        (("--device", "cuda:7"), "device: got 'cuda:7'"),
        (("--attention", "cudnn"), "attention: got 'cudnn'"),
        (("--optimizer", "lion"), "optimizer: got 'lion'"),
        (("--stack", "hf"), "stack: got 'hf'"),
        (("--tp", "2"), "torchrun --nproc-per-node 2"),
    ],
)
def test_bad_input_is_one_line(memcalc: Any, small: Any, words: Any, said: str) -> None:
    outcome = memcalc("verify", small(), *FAST, "--no-record", *words)
    assert outcome.status == 2
    assert said in outcome.error
