"""The CPU benchmark of step times: the same decoders every time, and scores that say what they are."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import cpu_time
from benchmarks.cpu import report
from benchmarks.cpu.decoders import MOST_FLOPS, PRECISIONS, Drawn, draw, drawn
from memcalc.engine.flops import step_flops
from memcalc.inputs import calibrations
from tests.calibrated import small_calibration

SMALL = Drawn("llama", 128, 2, 1, 320, 2, 1024, 64, 1, "fp32", "foreach", True)


@pytest.fixture(autouse=True)
def threads() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_seed_draws_the_same_decoders_within_the_stated_ranges() -> None:
    found = draw(6, 3)
    assert found == draw(6, 3) != draw(6, 4)
    for one in found:
        assert 128 <= one.hidden_size <= 1024 and 2 <= one.layers <= 6
        assert 64 <= one.seq_len <= 512 and 1 <= one.micro_batch_size <= 4
        assert one.hidden_size % one.heads == 0 and one.heads % one.kv_heads == 0
        assert step_flops(one.plan()).executed <= MOST_FLOPS
        assert one.plan().config.num_hidden_layers == one.layers


def test_draws_vary_in_everything() -> None:
    rng = random.Random(1)
    many = [drawn(rng) for _ in range(200)]
    for field in ("family", "precision", "optimizer_impl", "layers", "micro_batch_size", "tied"):
        assert len({getattr(one, field) for one in many}) > 1, field
    assert {one.precision for one in many} == set(PRECISIONS)
    assert len({one.hidden_size for one in many}) > 10


def _row(error: float, family: str = "llama", precision: str = "fp32") -> dict[str, Any]:
    decoder = SMALL._replace(family=family, precision=precision)._asdict()
    return {"decoder": decoder, "error": error, "error_of_median": error / 2}


def test_scores() -> None:
    rows = [_row(0.10), _row(-0.20, "gpt2"), _row(0.02), _row(0.16, precision="bf16-mixed")]
    found = report.by_group(rows)
    assert found["all"] == {
        "n": 4, "median_abs_error": pytest.approx(0.13), "mean_abs_error": pytest.approx(0.12),
        "bias": pytest.approx(0.02), "worst_abs_error": 0.20, "within_15_pct": 0.5,
    }  # fmt: skip
    assert found["all, of medians"]["worst_abs_error"] == pytest.approx(0.10)
    assert found["gpt2"]["bias"] == -0.20 and found["llama"]["n"] == 3


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("calibration") / "small.toml"
    path.write_text(calibrations.to_text(small_calibration(tmp_path_factory)), "utf-8")
    return path


def test_the_program_prices_and_measures(
    calibration: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.setattr(cpu_time, "draw", lambda count, seed: [SMALL] * count)
    monkeypatch.setattr(cpu_time, "HERE", tmp_path)
    words = ["--calibration", str(calibration), "--decoders", "2", "--least", "0"]
    assert cpu_time.main([*words, "--json", "--write"]) == 0
    found = json.loads(capsys.readouterr().out)
    [line] = (tmp_path / "cpu_time.jsonl").read_text().splitlines()
    assert json.loads(line) == found
    assert found["scores"]["all"]["n"] == 2 and found["threads"] == 1
    for row in found["rows"]:
        steps = row["measured"]["step_s"]
        assert len(steps) >= 7 and min(steps) <= row["measured_s"] <= max(steps)
        assert row["error"] == pytest.approx(row["predicted_s"] / row["measured_s"] - 1)
        assert set(row["part_errors"]) == {"forward", "backward", "optimizer"}
        assert row["predicted_s"] > 0
    assert cpu_time.main(words) == 0
    said = capsys.readouterr().out
    assert "median |error|" in said and SMALL.label[:20] in said


def test_bad_input_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, calibration: Path
) -> None:
    gpu = calibrations.read(calibration)
    gpu["device"] = {**gpu["device"], "type": "cuda"}
    path = tmp_path / "gpu.toml"
    path.write_text(calibrations.to_text(gpu), "utf-8")
    for words in (["--calibration", str(path)], ["--calibration", str(tmp_path / "no.toml")],
                  ["--decoders", "0"], ["--what"]):  # fmt: skip
        assert cpu_time.main(words) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
