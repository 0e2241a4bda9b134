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


def test_the_step_alone_says_nothing_of_them(memcalc):  # type: ignore[no-untyped-def]
    assert "program" not in memcalc(*ARGUMENTS, "--json").json
    assert "Outside the step" not in memcalc(*ARGUMENTS, "--phase", "train").out


def test_fsdp_saves_by_gathering_and_the_rest_is_refused(memcalc):  # type: ignore[no-untyped-def]
    sharded = (*ARGUMENTS, "--gpus", "8", "--fsdp")
    (one,) = memcalc(*sharded, "--phase", "save", "--json").json["program"]
    assert one["parts"]["gathered"] == 128256 * 2048 * 4
    outcome = memcalc(*sharded, "--phase", "all")
    assert outcome.status == 2 and "--phase save" in outcome.err
