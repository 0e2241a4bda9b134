"""Pipelines on the command line: every stage shown, the worst named, the timeline, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import timeline_rows

Run = Callable[..., Any]
MODEL = ("gpt2", "--set", "model.tie_word_embeddings=false", "--seq", "64", "--grad-accum", "8")
SETUPS = {
    "gpipe": ("--pp", "4", "--schedule", "gpipe"),
    "1f1b": ("--pp", "4"),
    "interleaved": ("--pp", "2", "--vpp", "2", "--schedule", "interleaved"),
    "zb-h1": ("--pp", "2", "--schedule", "zb-h1"),
    "zb-v": ("--pp", "2", "--schedule", "zb-v"),
    "dualpipe": ("--pp", "2", "--schedule", "dualpipe"),
    "uneven": ("--pp", "3", "--stage-layers", "0,8,4", "--recompute", "full", "--gpus", "3"),
    "megatron": ("--pp", "4", "--stack", "megatron"),
    "megatron-interleaved": (
        "--pp", "2", "--vpp", "3", "--schedule", "interleaved", "--stack", "megatron",
    ),
}  # fmt: skip


@pytest.mark.parametrize("words", SETUPS.values(), ids=SETUPS.keys())
def test_the_timeline_is_that_of_the_worst_stage(
    memcalc: Run, tmp_path: Path, words: tuple[str, ...]
) -> None:
    path = tmp_path / "step.csv"
    found = memcalc("estimate", *MODEL, *words, "--json", "--timeline", path).json["memory"]
    rows = timeline_rows(path, found["peak_requested_bytes"])
    for phase, peak in found["phases"].items():
        own = [int(row["live_bytes"]) for row in rows if row["phase"] == phase]
        assert not own or max(own) >= peak * 0.999, phase  # Megatron's optimizer allocates nothing


def test_json_has_every_stage_and_the_worst_of_them(memcalc: Run) -> None:
    memory = memcalc("estimate", *MODEL, "--pp", "4", "--json").json["memory"]
    stages = memory["stages"]
    assert [one["stage"]["stage"] for one in stages] == [0, 1, 2, 3]
    assert [one["stage"]["layers"] for one in stages] == [[[0, 2]], [[3, 5]], [[6, 8]], [[9, 11]]]
    assert [one["stage"]["in_flight"] for one in stages] == [[4], [3], [2], [1]]
    worst = max(stages, key=lambda one: one["device_used_bytes"])
    assert memory["stage"] == worst["stage"]
    assert memory["peak_reserved_bytes"] == worst["peak_reserved_bytes"]
    for one in stages:
        assert sum(one["breakdown"].values()) == one["peak_allocated_bytes"]


@pytest.mark.parametrize("batches", [1, 2])
def test_no_category_is_negative_where_something_stands_from_the_step_before(
    memcalc: Run, batches: int
) -> None:
    """Megatron keeps the last input and its gradient until the next step's first forward."""
    words = ("--layers", 4, "--gpus", 2, "--pp", 2, "--grad-accum", batches, "--stack", "megatron")
    for stage in memcalc("estimate", "llama-3.2-1b", *words, "--json").json["memory"]["stages"]:
        assert min(stage["breakdown"].values()) >= 0
        assert sum(stage["breakdown"].values()) == stage["peak_allocated_bytes"]


def test_the_table_names_the_worst_stage(memcalc: Run) -> None:
    done = memcalc("estimate", *MODEL, "--pp", "3", "--stage-layers", "0,8,4")
    text = done.out
    assert "3 GPUs: pp 3, 1f1b" in text
    rows = [
        line.split() for line in text.splitlines() if line.lstrip(" *")[:2] in ("0 ", "1 ", "2 ")
    ]
    assert [row[1] for row in rows] == ["none", "0-7", "8-11"]
    starred = [row[0] for row in rows if row[0].startswith("*")]
    assert len(starred) == 1
    assert f"* stage {starred[0][1:]} needs most: " in text


def test_gpus_fill_in_the_copies(memcalc: Run) -> None:
    setup = memcalc("estimate", *MODEL, "--pp", "4", "--gpus", "16", "--json").json["setup"]
    assert (setup["pp"], setup["dp"], setup["gpus"]) == (4, 4, 16)


def test_one_stage_is_the_estimate_of_one_gpu(memcalc: Run) -> None:
    plain, one = (
        memcalc("estimate", *MODEL, *words, "--json").json["memory"]
        for words in ((), ("--pp", "1"))
    )
    assert one == plain


def test_explain_says_that_it_has_the_blocks_of_all_stages(memcalc: Run) -> None:
    done = memcalc("explain", *MODEL, "--pp", "4")
    assert done.status == 0
    assert "blocks of all 4 stages" in done.out + done.err


REFUSED = {
    ("--pp", "3", "--gpus", "8"): "pp: got 3; rule: tp x pp x cp divides 8 GPUs; valid: 1, 2, 4, 8",
    ("--pp", "2", "--schedule", "foo"): "valid: 1f1b, dualpipe, gpipe, interleaved, zb-h1, zb-v",
    ("--pp", "2", "--vpp", "2"): "valid: --schedule interleaved",
    ("--pp", "2", "--stage-layers", "1,2"): "rule: 2 numbers that sum to the 12 layers",
    ("--stage-layers", "12"): "stage_layers: got 12 with pp 1; valid: --pp above 1",
    ("--pp", "9"): "rule: at least a micro-batch for each of the 9 stages (PyTorch); valid: 9 and",
    ("--pp", "13", "--schedule", "gpipe"): "valid: 1 to 12, the layers of gpt2",
    ("--pp", "4", "--schedule", "zb-v", "--vpp", "3"): "rule: zb-v has 2 chunks a rank",
    ("--pp", "4", "--schedule", "zb-v", "--recompute", "full"): "valid: none",
    ("--pp", "2", "--stack", "hf"): "valid: 1, or --stack torch",
    ("--pp", "2", "--schedule", "gpipe", "--stack", "megatron"): "valid: 1f1b, interleaved",
    ("--pp", "2", "--set", "model.tie_word_embeddings=true"): "keeps no copy of it on the last",
}


@pytest.mark.parametrize(
    ("words", "said"),
    REFUSED.items(),
    ids=lambda one: " ".join(one) if isinstance(one, tuple) else "",
)
def test_what_cannot_be_is_refused_in_one_line(
    memcalc: Run, words: tuple[str, ...], said: str
) -> None:
    done = memcalc("estimate", *MODEL, *words)
    assert done.status == 2
    assert said in done.error
