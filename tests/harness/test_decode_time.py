"""The CPU benchmark of decoding: the same generations every time, priced and measured, and its scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import decode_time
from benchmarks.cpu.decoders import Drawn
from benchmarks.cpu.generations import Asked, draw
from memcalc.inputs import calibrations
from tests.calibrated import small_calibration

SMALL = Asked(
    Drawn("llama", 128, 2, 1, 320, 2, 1024, 64, 1, "fp32", "foreach", True),
    2, 16, 3, "grow", "flash", "bf16",
)  # fmt: skip


@pytest.fixture(autouse=True)
def threads() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("calibration") / "small.toml"
    path.write_text(calibrations.to_text(small_calibration(tmp_path_factory)), "utf-8")
    return path


def test_a_seed_draws_the_same_generations() -> None:
    found = draw(12, 3)
    assert found == draw(12, 3) != draw(12, 4)
    assert len({one.code for one in found}) > 1 and len({one.precision for one in found}) > 1
    for one in found:
        asked = one.generation()
        assert (asked.batch, asked.prompt, asked.steps, asked.code) == one[1:5]
        assert asked.kernels.attention == one.attention and asked.kernels.device == "cpu"
        assert asked.kernels.compute_dtype == one.precision


def test_the_program_prices_and_measures(
    calibration: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.setattr(decode_time, "draw", lambda count, seed, steps: [SMALL] * count)
    monkeypatch.setattr(decode_time, "HERE", tmp_path)
    words = ["--calibration", str(calibration), "--decoders", "2", "--rounds", "2"]
    assert decode_time.main([*words, "--json", "--write"]) == 0
    found = json.loads(capsys.readouterr().out)
    [line] = (tmp_path / "decode_time.jsonl").read_text().splitlines()
    assert json.loads(line) == found
    assert found["scores"]["a token"]["n"] == 2 and found["threads"] == 1
    for row in found["rows"]:
        steps = [seconds for _, taken in row["rounds"] for seconds in taken]
        assert len(row["rounds"]) == 2 and len(steps) == 2 * SMALL.steps
        assert min(steps) <= row["measured_s"] <= max(steps)
        assert row["error"] == pytest.approx(row["predicted_s"] / row["measured_s"] - 1)
        assert row["error_of_median"] <= row["error"]
        assert row["predicted_prefill_s"] > 0 and row["measured_prefill_s"] > 0
    assert decode_time.main(words) == 0
    said = capsys.readouterr().out
    assert "median |error|" in said and SMALL.label[:20] in said


def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for words in (["--calibration", str(tmp_path / "no.toml")], ["--rounds", "0"], ["--what"]):
        assert decode_time.main(words) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
