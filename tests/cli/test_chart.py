"""memcalc chart: pictures, data and text of the same object, and what is wrong said before the work."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

from memcalc.cli.chart_options import KINDS

SMALL = {
    "model_type": "llama", "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}  # fmt: skip
GPT2 = ("gpt2", "--seq", "64", "--gpu", "h100", "-q")
MAGIC = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}


@pytest.mark.parametrize(
    ("kind", "ending"), [("breakdown", "png"), ("breakdown", "pdf"), ("timeline", "svg")]
)
def test_a_picture_is_written_and_nothing_is_said(
    memcalc: Any, tmp_path: Path, kind: str, ending: str
) -> None:
    path = tmp_path / f"x.{ending}"
    outcome = memcalc("chart", kind, *GPT2, "-o", path)
    assert (outcome.status, outcome.out, outcome.err) == (0, "", "")
    assert path.read_bytes().startswith(MAGIC[ending])
    again = tmp_path / f"again.{ending}"
    assert memcalc("chart", kind, *GPT2, "-o", again).status == 0
    assert again.read_bytes() == path.read_bytes()
    dark = tmp_path / f"dark.{ending}"
    assert memcalc("chart", kind, *GPT2, "-o", dark, "--theme", "dark").status == 0
    assert dark.read_bytes() != path.read_bytes()


@pytest.mark.parametrize("kind", ["breakdown", "timeline"])
def test_every_form_is_of_the_same_object(memcalc: Any, tmp_path: Path, kind: str) -> None:
    found = memcalc("chart", kind, *GPT2, "--json").json
    assert found["schema"] == 1 and found["chart"] == kind and "gpt2 on h100-80gb" in found["title"]
    for ending in ("json", "csv", "md", "txt"):
        assert memcalc("chart", kind, *GPT2, "-o", tmp_path / f"x.{ending}").out == ""
    assert json.loads((tmp_path / "x.json").read_text()) == found
    stated = (tmp_path / "x.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(stated)))
    assert len(rows) == len(found["rows"])
    for row, told in zip(rows, found["rows"], strict=True):
        assert {n: int(row[f"parts.{n}"]) for n in told["parts"]} == told["parts"]
    assert memcalc("chart", kind, *GPT2, "--csv").out == stated
    assert len((tmp_path / "x.md").read_text().splitlines()) == len(rows) + 2
    assert (tmp_path / "x.txt").read_text() == memcalc("chart", kind, *GPT2).out


def test_json_goes_to_stdout_beside_a_picture(memcalc: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    outcome = memcalc("chart", "breakdown", *GPT2, "--json", "-o", path)
    assert outcome.json["rows"] and path.read_bytes().startswith(MAGIC["png"])


def test_the_breakdown_is_the_estimates(memcalc: Any) -> None:
    words = ("--micro-batch", "1,4", "--setup", "--recompute full", "--setup", "--optimizer sgd")
    rows = memcalc("chart", "breakdown", *GPT2, *words, "--json").json["rows"]
    assert len(rows) == 4
    for row in rows:
        told = memcalc(*row["command"].split()[1:], "--json").json["memory"]
        assert row["total_bytes"] == told["device_used_bytes"] == sum(row["parts"].values())
        assert {n: row["parts"][n] for n in told["breakdown"]} == told["breakdown"]


def test_what_does_not_fit_is_drawn_and_said_and_the_status_is_0(memcalc: Any) -> None:
    outcome = memcalc("chart", "breakdown", "llama-3.1-8b", "--gpu", "4090", "--seq", "64")
    assert outcome.status == 0
    assert "too much" in outcome.out and "|" in outcome.out


def test_refused_combinations_keep_their_place(memcalc: Any, tmp_path: Path) -> None:
    words = ("gpt2", "--seq", "64", "--tp", "1,7", "--gpus", "7", "-q")
    rows = memcalc("chart", "breakdown", *words, "--json", "-o", tmp_path / "x.png").json["rows"]
    assert [row["reason"] is None for row in rows] == [True, False]
    assert "tp=7" in rows[1]["reason"] and (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "chart: got no KIND"),
        (("brakdown", "gpt2"), "nearest: breakdown"),
        (("breakdown",), "got no model"),
        (("breakdown", "gpt2", "more"), "more"),
        (("breakdown", "gpt2", "-o", "x.gif"), "--out: got 'x.gif'; rule: a file ending in .png"),
        (("breakdown", "gpt2", "-o", "x"), "--out: got 'x'"),
        (("breakdown", "gpt2", "-o", "nowhere/x.png"), "No such file or directory"),
        (("breakdown", "gpt2", "-o", "."), "got directory '.'"),
        (("breakdown", "gpt2", "-o", "x\0.png"), "rule: a file name"),
        (("breakdown", "gpt2", "-o", "x" * 300 + ".png"), "name too long"),
        (("breakdown", "gpt2", "--json", "--csv"), "one form of output"),
        (("breakdown", "gpt2", "--json", "-o", "x.csv"), "one form of output"),
        (("breakdown", "gpt2", "--theme", "pink"), "--theme: got 'pink'"),
        (("breakdown", "gpt2", "--micro-batch", ","), "--micro-batch: got ','"),
        (("breakdown", "gpt2", "--micro-batch", "1..50"), "rule: at most 40 in one picture"),
        (("breakdown", "gpt2", "--tp", "5,7"), "tp=5"),
        (("timeline", "gpt2", "--seq", "64,128"), "--seq: got 2 values"),
        (("timeline", "--record", "nowhere.jsonl"), "nowhere.jsonl"),
        (("timeline", "gpt2", "--record", "x.jsonl", "--seq", "64"), "--seq: got --record too"),
    ],
)
def test_bad_input_is_one_line_before_any_work(
    memcalc: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: Any, said: str
) -> None:
    from memcalc.planning import cases

    def work(*_: Any, **__: Any) -> Any:
        raise AssertionError("an estimate was computed")

    monkeypatch.chdir(tmp_path)
    if "tp=" not in said:
        monkeypatch.setattr(cases, "estimate", work)
    outcome = memcalc("chart", *words)
    assert outcome.status == 2 and outcome.out == ""
    assert said.lower() in outcome.error.lower()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_read_only_is_said_first(memcalc: Any, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    outcome = memcalc("chart", "breakdown", *GPT2, "-o", tmp_path / "x.png")
    assert outcome.status == 2 and "Permission denied" in outcome.error


def test_an_old_picture_stays_when_there_is_no_room_for_a_new_one(
    memcalc: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(b"old")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    outcome = memcalc("chart", "breakdown", *GPT2, "-o", path)
    assert outcome.status == 2 and "No space left" in outcome.error
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_measured_step_is_drawn_beside_the_estimate(memcalc: Any, tmp_path: Path) -> None:
    model, records = tmp_path / "config.json", tmp_path / "records.jsonl"
    model.write_text(json.dumps(SMALL))
    run = ("--seq", "48", "--device", "cpu", "--steps", "1", "--warmup", "1", "--threads", "1")
    done = memcalc("measure", model, *run, "--grad-accum", "3", "--records", records, "-q")
    assert done.status == 0, done.err
    found = memcalc("chart", "timeline", "--record", records, "--json").json
    measured = found["measured"]
    kept = json.loads(records.read_text())["timeline"]
    assert [measured["at"], measured["live_bytes"]] == [kept["at"], kept["live_bytes"]]
    told = {row["at"]: row["live_bytes"] for row in found["rows"]}
    upto = next(span["begin"] for span in measured["phases"] if span["phase"] == "optimizer")
    both = [
        (told[at], level)
        for at, level in zip(measured["at"], measured["live_bytes"], strict=True)
        if at in told and at < upto
    ]
    assert len(both) > 50 and all(one == other for one, other in both)
    assert max(told.values()) == measured["peak_bytes"] == found["peak"]["live_bytes"]
    picture = tmp_path / "x.png"
    assert memcalc("chart", "timeline", "--record", records, "-o", picture).status == 0
    assert picture.read_bytes().startswith(MAGIC["png"])
    other = memcalc("chart", "timeline", "gpt2", "--record", records)
    assert other.status == 2 and "without a measured step of gpt2" in other.error


def test_a_broken_pipe_of_numbers_is_no_traceback(memcalc: Any) -> None:
    outcome = memcalc("chart", "breakdown", *GPT2, "--csv", "-o", "/dev/full")
    assert outcome.status == 2 and "No space left" in outcome.error


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_its_modules(kind: str) -> None:
    from importlib import import_module

    from memcalc.cli.chart import drawing

    assert callable(import_module(f"memcalc.cli.charts.{kind}").found)
    assert callable(drawing(kind).draw) and callable(drawing(kind).page)
