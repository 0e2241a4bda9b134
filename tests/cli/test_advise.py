"""memcalc advise: the JSON, the page, commands that give the figures shown, what is refused."""

from __future__ import annotations

import shlex

import pytest

_KINDS = ["same", "money", "numerics", "method"]
_ROW = {"change", "kind", "command", "fits", "verdict", "memory", "step_s", "tokens_per_s", "time",
        "speed_change", "gpus", "global_batch", "why", "words"}  # fmt: skip
_TIGHT = ("llama-3.2-1b", "--gpu", "4090")


def test_the_json_holds_ranked_rows(memcalc) -> None:  # type: ignore[no-untyped-def]
    outcome = memcalc("advise", *_TIGHT, "--json")
    found = outcome.json
    assert outcome.status == 0 and outcome.err == ""
    assert found["fits"] is False and found["recommended"] == found["advice"][0]["change"]
    assert all(set(row) >= _ROW and row["fits"] and row["why"] for row in found["advice"])
    kinds = [row["kind"] for row in found["advice"]]
    assert kinds == sorted(kinds, key=_KINDS.index) and set(kinds) == set(_KINDS)
    for kind in _KINDS:
        speeds = [row["tokens_per_s"] for row in found["advice"] if row["kind"] == kind]
        assert all(
            after <= 1.011 * before for before, after in zip(speeds, speeds[1:], strict=False)
        )
    assert len(found["considered"]) > 20


def test_every_command_gives_the_figures_of_its_row(memcalc) -> None:  # type: ignore[no-untyped-def]
    for row in memcalc("advise", *_TIGHT, "--json").json["advice"]:
        outcome = memcalc(*shlex.split(row["command"])[1:], "--json")
        assert outcome.status == 0, row["command"]
        alone = outcome.json
        assert alone["time"]["step_s"] == pytest.approx(row["step_s"], rel=1e-12)
        assert alone["memory"]["device_used_bytes"] == row["memory"]["device_used_bytes"]
        assert alone["setup"]["global_batch"] == row["global_batch"]


def test_a_slow_setup_that_fits_is_made_faster(memcalc) -> None:  # type: ignore[no-untyped-def]
    words = ("llama-3.2-1b", "--gpu", "h100", "--recompute", "full", "--attention", "eager")
    found = memcalc("advise", *words, "--json").json
    best = found["advice"][0]
    assert found["fits"] is True and best["kind"] == "same" and best["speed_change"] > 0.5
    assert "--attention" in best["change"] and "--recompute full" not in best["command"]
    assert all(row["speed_change"] > 0 and row["fits"] for row in found["advice"])
    larger = [row for row in found["advice"] if row["kind"] == "method"]
    assert larger and all("the batch grows" in row["words"] for row in larger)


def test_the_batch_stays_where_the_training_does(memcalc) -> None:  # type: ignore[no-untyped-def]
    words = ("llama-3.2-1b", "--gpu", "4090", "--micro-batch", "4", "--grad-accum", "2", "--json")
    for row in memcalc("advise", *words).json["advice"]:
        if row["kind"] in ("same", "numerics"):
            assert row["global_batch"] == 8, row["change"]


def test_the_page_is_80_columns_but_for_commands(memcalc) -> None:  # type: ignore[no-untyped-def]
    outcome = memcalc("advise", *_TIGHT, "--top", "3")
    lines = outcome.out.splitlines()
    assert "\x1b" not in outcome.out
    assert all(len(line) <= 80 for line in lines if not line.startswith("   memcalc "))
    assert sum(line.startswith("   memcalc estimate") for line in lines) == 3
    assert "does not fit" in lines[0]
    assert memcalc("advise", *_TIGHT, "-q").out.startswith("memcalc estimate llama-3.2-1b")


def test_a_stated_stack_stays(memcalc) -> None:  # type: ignore[no-untyped-def]
    words = ("llama-2-7b", "--cluster", "hgx-h100", "--gpus", "8", "--stack", "torch", "--json")
    rows = memcalc("advise", *words).json["advice"]
    assert rows and not any("--stack" in row["change"] for row in rows if row["kind"] == "same")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "estimate: got no model"),
        (("gpt2",), "advise: got no GPU; rule: --gpu NAME or --cluster NAME"),
        (("gpt2", "--gpu-memory", "4GiB"), "advise: got no GPU"),
        (("gpt2", "--gpu", "h100,4090"), "--gpu: got 2 values"),
        (("gpt2", "--gpu", "h100", "--tp", "5"), "tp=5 does not divide"),
        (("gpt2", "--gpu", "h100", "--top", "0"), "--top: got 0; rule: at least 1"),
        (("gpt2", "--gpu", "h100", "--json", "-q"), "--quiet: got --json too"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(memcalc, words, said) -> None:  # type: ignore[no-untyped-def]
    outcome = memcalc("advise", *words)
    assert outcome.status == 2 and outcome.error.startswith(said), outcome.err


def test_an_estimate_that_does_not_fit_points_here(memcalc) -> None:  # type: ignore[no-untyped-def]
    outcome = memcalc("estimate", "llama-3.1-8b", "--gpu", "a100-80gb", "--gpus", "8")
    assert outcome.status == 3
    assert "advice: --fsdp" in outcome.out and "memcalc advise" in outcome.out
