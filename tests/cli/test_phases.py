"""estimate --phase: peaks outside the step and the size of a checkpoint."""

from __future__ import annotations

import pytest

ARGUMENTS = ("estimate", "llama-3.2-1b", "--seq", "128")


def test_all_phases_and_the_checkpoint(memcalc):  # type: ignore[no-untyped-def]
    found = memcalc(*ARGUMENTS, "--phase", "all", "--json").json
    program = {one["phase"]: one for one in found["program"]}
    assert list(program) == ["load", "first step", "eval", "save"]
    states = found["memory"]["states"]
    assert program["load"]["peak_requested_bytes"] == states["parameters"]
    for one in program.values():
        assert sum(one["parts"].values()) == one["peak_requested_bytes"]
    assert program["eval"]["peak_requested_bytes"] < found["memory"]["peak_requested_bytes"]
    disk = found["checkpoint"]
    assert disk["model_bytes"] == states["parameters"]
    steps = 4 * found["model"]["parameter_tensors"]
    assert disk["optimizer_bytes"] == states["optimizer"] + steps


@pytest.mark.parametrize("phase", ["load", "eval", "save"])
def test_one_phase_alone(memcalc, phase):  # type: ignore[no-untyped-def]
    found = memcalc(*ARGUMENTS, "--phase", phase, "--json").json
    assert [one["phase"] for one in found["program"]] == [phase]
    assert ("checkpoint" in found) == (phase == "save")
    text = memcalc(*ARGUMENTS, "--phase", phase).out
    assert "Outside the step" in text and max(map(len, text.splitlines())) <= 80
    assert ("checkpoint on disk" in text) == (phase == "save")


def test_the_quiet_line_ends_with_the_phases(memcalc):  # type: ignore[no-untyped-def]
    words = memcalc(*ARGUMENTS, "--phase", "all", "--quiet").out.split()
    said = dict(zip(words[::2], words[1::2], strict=True))
    assert list(said)[-5:] == ["verdict", "load", "first-step", "eval", "save"]
    found = memcalc(*ARGUMENTS, "--phase", "all", "--json").json["program"]
    assert [int(said[w]) for w in list(said)[-4:]] == [o["peak_requested_bytes"] for o in found]


def test_the_step_alone_says_nothing_of_them(memcalc):  # type: ignore[no-untyped-def]
    assert "program" not in memcalc(*ARGUMENTS, "--json").json
    assert "Outside the step" not in memcalc(*ARGUMENTS, "--phase", "train").out


def test_fsdp_saves_by_gathering_and_by_parts(memcalc):  # type: ignore[no-untyped-def]
    sharded = (*ARGUMENTS, "--gpus", "8", "--fsdp", "--phase", "save")
    (one,) = memcalc(*sharded, "--json").json["program"]
    assert one["parts"]["gathered"] == 128256 * 2048 * 4
    assert one["host_bytes"] == 4 * 1_235_814_400 and one["exact"]
    found = memcalc(*sharded, "--save-as", "sharded", "--json").json
    assert "gathered" not in found["program"][0]["parts"]
    assert [file["count"] for file in found["checkpoint"]["files"]] == [8, 8]


def test_a_page_of_all_phases_of_a_sharded_model(memcalc):  # type: ignore[no-untyped-def]
    words = ("--gpus", "8", "--fsdp", "--load-by", "rank0", "--eval-batches", "16")
    text = memcalc(*ARGUMENTS, *words, "--phase", "all").out
    assert max(map(len, text.splitlines())) <= 80
    assert "a parameter whole" in text and "kept_logits" in text and "checkpoint on disk" in text


def test_kept_logits_grow_with_the_batches(memcalc):  # type: ignore[no-untyped-def]
    peaks = []
    for batches in ("8", "64", "128"):
        words = ("--phase", "eval", "--eval-batches", batches, "--json")
        peaks.append(memcalc(*ARGUMENTS, *words).json["program"][0]["peak_requested_bytes"])
    assert peaks == sorted(peaks)
    assert peaks[2] - peaks[1] == 2 * (128 - 64) * 128 * 128256 * 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--load-by", "copy"), "--load-by: got it with --phase train"),
        (("--phase", "save", "--eval-batches", "2"), "nearest valid: --phase eval"),
        (("--phase", "load", "--load-from", "prequantised"), "nearest valid: 16bit"),
        (("--phase", "save", "--save-as", "adapter"), "nearest valid: full"),
        (("--phase", "eval", "--gpus", "2", "--cp", "2"), "nearest valid"),
    ],
)
def test_one_line_where_it_cannot_be(memcalc, words, said):  # type: ignore[no-untyped-def]
    outcome = memcalc(*ARGUMENTS, *words)
    assert outcome.status == 2 and said in outcome.err
