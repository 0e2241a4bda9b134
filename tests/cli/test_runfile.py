"""--save and --config: a run comes back as it was, and the command line wins."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

_WORDS = (
    "gpt2", "--seq", "1k", "--micro-batch", "2", "--precision", "bf16", "--no-set-to-none",
    "--recompute", "full:3", "--dropout", "0.25", "--gpu", "h100", "--reserve", "2GiB",
    "--set", "training.reentrant=true", "--set", "kernels.norm=hand",
)  # fmt: skip


def test_a_saved_run_gives_the_same_estimate(memcalc, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "run.toml"
    first = memcalc("estimate", *_WORDS, "--json", "--save", path)
    again = memcalc("estimate", "--config", path, "--json")
    assert first.json == again.json and first.status == again.status
    tables = tomllib.loads(path.read_text())
    assert tables["training"]["seq"] == 1024 and tables["model"]["name"] == "gpt2"


def test_the_command_line_beats_the_file(memcalc, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "run.toml"
    memcalc("estimate", *_WORDS, "--json", "--save", path)
    found = memcalc("estimate", "gpt2-medium", "--config", path, "--seq", "64", "--json").json
    assert found["setup"]["seq_len"] == 64 and found["model"]["name"] == "gpt2-medium"
    assert found["setup"]["micro_batch_size"] == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[training]\nsqe = 4", "nearest: seq"),
        ("[trainig]\nseq = 4", "nearest: training"),
        ("seq = 4", "table"),
        ("[training]\nseq = [1]", "a number or a string"),
        ("[training]\ngrad-clip = 1", "true or false"),
        ("[parallelism]\ntp = 2", "divides vocab_size"),
        ("[training]\nseq = nan", "--seq"),
        ("[model]\nname = 3", "a string"),
        ("[model]\nset = 'x'", "a list of strings"),
        ("not toml", "not valid TOML"),
    ],
)
def test_a_bad_run_file_is_one_line(memcalc, tmp_path: Path, text: str, said: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "run.toml"
    path.write_text(text)
    outcome = memcalc("estimate", "gpt2", "--config", path)
    assert outcome.status == 2 and said in outcome.error


def test_diff_of_a_run_with_itself_moves_nothing(memcalc, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    run, result = tmp_path / "run.toml", tmp_path / "result.json"
    memcalc("estimate", *_WORDS, "--save", run, "-o", result)
    found = memcalc("diff", run, result, "--json").json
    assert found["setup"] == [] and found["memory"] == []
    assert "nothing moved" in memcalc("diff", run, result).out


def test_diff_shows_settings_and_numbers_that_moved(memcalc) -> None:  # type: ignore[no-untyped-def]
    words = ("diff", "gpt2 --seq 64", "gpt2 --seq 128 --recompute full")
    found = memcalc(*words, "--json").json
    assert {entry["field"] for entry in found["setup"]} == {"seq_len", "recompute"}
    peak = next(e for e in found["memory"] if e["field"] == "saved_for_backward_bytes")
    assert peak["delta"] == peak["b"] - peak["a"]
    text = memcalc(*words).out
    assert max(map(len, text.splitlines())) <= 80


def test_diff_refuses_json_of_another_kind(memcalc, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "other.json"
    for text in ("{}", "[]", "[" * 100_000, '{"model": {}, "setup": {}, "memory": {}}'):
        path.write_text(text)
        outcome = memcalc("diff", path, "gpt2")
        assert outcome.status == 2 and outcome.error
