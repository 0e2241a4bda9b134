"""The command `search`: forms of its result, commands that give it back, statuses, bad input."""

from __future__ import annotations

import csv
import io
import json
import shlex

import pytest

from memcalc.__main__ import main
from tests.unit.search_support import interrupt

_SMALL = ["search", "llama-3.2-1b", "--gpu", "h100", "--gpus", "8", "--global-batch", "16"]
_FEW = [*_SMALL, "--layers", "4", "--max-tp", "2", "--max-micro-batch", "2", "--max-cp", "1"]


def _json(capsys, *words: str, status: int = 0) -> dict:
    assert main([*_FEW, *words, "--json"]) == status
    return json.loads(capsys.readouterr().out)


def test_json_has_the_contract_keys(capsys):
    found = _json(capsys, "--top", "3")
    assert found["schema"] == 1
    assert found["count"] >= found["valid"] >= found["may_fit"] > 0
    assert found["elapsed_s"] > 0
    assert [row["place"] for row in found["best"]] == [1, 2, 3]
    assert found["pareto"] and found["why"] and found["stability"]


def test_each_command_gives_its_row_back(capsys):
    for row in _json(capsys, "--top", "3", "--precision", "bf16-mixed", "--seq", "4k")["best"]:
        words = shlex.split(row["command"])
        assert words[:2] == ["memcalc", "estimate"]
        assert main([*words[1:], "--json"]) == 0
        result = json.loads(capsys.readouterr().out)
        assert result["time"]["step_s"] == row["step_s"]
        assert result["memory"]["device_used_bytes"] == row["device_used_bytes"]
        assert result["verdict"] == row["verdict"]


def test_a_page_says_what_won_and_why(capsys):
    assert main(_FEW) == 0
    said = capsys.readouterr().out
    assert "valid setups of" in said and "Why 1 is before 2" in said
    assert "1 stays first of" in said and "memcalc estimate llama-3.2-1b" in said
    assert "Front of memory and speed" in said


def test_options_of_a_setup_fix_axes(capsys):
    by_option = _json(capsys, "--tp", "2", "--recompute", "full", "--no-sp")
    by_fix = _json(capsys, "--fix", "tp=2", "--fix", "recompute=full", "--fix", "sp=no")
    assert by_option["valid"] == by_fix["valid"]
    for row in by_option["best"]:
        assert row["options"]["tp"] == "2" and row["options"]["no-sp"] is True
        assert row["options"]["recompute"] == "full"


def test_lists_and_ranges(capsys):
    found = _json(capsys, "--fix", "pp=1..2", "--fix", "micro-batch=2")
    shown = {
        (row["options"].get("pp", "1"), row["options"]["micro-batch"]) for row in found["best"]
    }
    assert shown <= {("1", "2"), ("2", "2")}


def test_csv_markdown_and_quiet(capsys, tmp_path):
    assert main([*_FEW, "--csv", "--top", "2"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 2 and float(rows[0]["step_s"]) > 0 and rows[0]["stack"] == "megatron"
    path = tmp_path / "best.md"
    assert main([*_FEW, "-o", str(path), "--top", "2"]) == 0
    assert path.read_text().startswith("| ")
    capsys.readouterr()
    assert main([*_FEW, "--quiet"]) == 0
    assert capsys.readouterr().out.startswith("valid ")


def test_a_picture(capsys, tmp_path):
    path = tmp_path / "front.svg"
    assert main([*_FEW, "--quiet", "--chart", str(path)]) == 0
    assert path.read_text().startswith("<?xml")


def test_nothing_fits_is_status_3_with_the_nearest(capsys):
    found = _json(capsys, "--gpu-memory", "2GiB", status=3)
    assert found["best"] == [] and found["why"] is None
    lacks = [row["lacking_bytes"] for row in found["near_misses"]]
    assert lacks and lacks[0] > 0 and lacks == sorted(lacks)
    assert main([*_FEW, "--gpu-memory", "2GiB"]) == 3
    said = capsys.readouterr().out
    assert "nothing fits" in said and "Nearest misses" in said and "short of" in said


def test_interrupted_is_status_130_and_prints(capsys, monkeypatch):
    interrupt(monkeypatch)
    assert main(_FEW) == 130
    assert "interrupted" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--gpus", "0"], "--gpus: got 0; rule: at least 1"),
        (["--global-batch", "0"], "--global-batch: got 0"),
        (["--fix", "tp"], "--fix: got 'tp'; rule: AXIS=VALUES"),
        (["--fix", "dp=4"], "--fix: got axis 'dp'; valid: tp"),
        (["--fix", "tp=3"], "fix: got tp=3; rule: a value of the space"),
        (["--fix", "zero=3"], "fix: got zero=3; rule: a value of the space"),
        (["--fix", "recompute=some"], "--recompute"),
        (["--fix", "tp=zwei"], "--tp"),
        (["--min-headroom", "5"], "--min-headroom: got '5'; rule: a share, as 5%"),
        (["--rank", "beauty"], "--rank: got 'beauty'"),
        (["--stack", "hf"], "stack: got 'hf'; rule: a stack with a space"),
        (["--dp", "4"], "--dp: not an option of search"),
        (["--chart", "front.txt"], "--chart: got 'front.txt'"),
        (["--csv", "--json"], "--csv: got --json too"),
    ],
)
def test_bad_input_is_one_line(capsys, words, said):
    assert main([*_FEW, *words]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert said in printed.err
    assert len([line for line in printed.err.splitlines() if line.startswith("error:")]) == 1


@pytest.mark.parametrize("left_out", ["--gpu", "--gpus", "--global-batch"])
def test_what_must_be_stated(capsys, left_out):
    at = _FEW.index(left_out)
    assert main([*_FEW[:at], *_FEW[at + 2 :]]) == 2
    assert left_out.removeprefix("--gpu").strip("-") in capsys.readouterr().err


def test_constraints_that_leave_nothing(capsys):
    """A batch that no data parallelism divides: why, and the next that is divided."""
    words = [*_FEW, "--global-batch", "7", "--fix", "tp=1", "--fix", "pp=1", "--fix", "cp=1"]
    assert main(words) == 3
    said = " ".join(capsys.readouterr().out.split())
    assert "must divide a batch of 7; nearest: --global-batch 8" in said
    assert "0 valid setups" in said


def test_values_the_space_has_not_are_named(capsys):
    assert main([*_FEW, "--fix", "tp=2,3"]) == 0
    assert "tp 3: not in the space; it has 1, 2" in capsys.readouterr().err
