"""memcalc solve: the JSON, the page, what is refused, and the exit status."""

from __future__ import annotations

import pytest

_SMALL = ("gpt2", "--gpu", "4090", "--gpu-memory", "6GiB", "--seq", "256")
_TIGHT = ("--gpu", "4090", "--gpu-memory", "4GiB")
_KEYS = {"schema", "memcalc", "what", "value", "first_failing", "limited_by", "headroom_bytes", "step",
         "monotone", "also_fits", "at_value", "at_first_failing", "estimates", "notes"}  # fmt: skip


def test_the_json_holds_the_value_and_the_next(memcalc) -> None:  # type: ignore[no-untyped-def]
    outcome = memcalc("solve", "micro-batch", *_SMALL, "--json")
    assert outcome.status == 0 and outcome.err == ""
    found = outcome.json
    assert set(found) >= _KEYS
    assert found["first_failing"] == found["value"] + 1
    assert found["at_value"]["fits"] is True and found["at_first_failing"]["fits"] is False
    limit = found["limited_by"]
    assert (
        limit["part"] in ("activations", "loss") and limit["grows"] and limit["lacking_bytes"] >= 0
    )
    assert limit["peak_at"].count("/") == 1
    assert found["estimates"] <= 40


def test_the_commands_are_those_of_estimate(memcalc) -> None:  # type: ignore[no-untyped-def]
    found = memcalc("solve", "seq", "pythia-160m", *_TIGHT, "--json").json
    for side, status in (("at_value", 0), ("at_first_failing", 3)):
        words = found[side]["command"].split()[1:]
        outcome = memcalc(*words, "--json")
        assert outcome.status == status
        assert outcome.json["memory"]["peak_allocated_bytes"] == found[side]["peak_allocated_bytes"]


def test_steps_are_of_sequences_and_contexts(memcalc) -> None:  # type: ignore[no-untyped-def]
    words = (*_TIGHT, "--step", "64")
    found = memcalc("solve", "seq", "pythia-160m", *words, "--json").json
    assert found["value"] % 64 == 0 and found["first_failing"] == found["value"] + 64
    served = memcalc("solve", "context", "llama-3.2-1b", *words, "--json").json
    assert served["value"] % 64 == 0 and served["first_failing"] == served["value"] + 64
    assert "--step" in memcalc("solve", "gpus", "gpt2", *words).error


def test_a_limit_of_the_model_is_the_reason(memcalc) -> None:  # type: ignore[no-untyped-def]
    found = memcalc("solve", "seq", "gpt2", "--gpu", "4090", "--json").json
    assert (found["value"], found["first_failing"]) == (1024, None)
    assert "learned positions of gpt2" in found["limited_by"]["reason"]


def test_batches_are_those_of_infer(memcalc) -> None:  # type: ignore[no-untyped-def]
    words = ("llama-3.2-1b", "--gpu", "4090", "--context", "4k", "--engine", "vllm")
    found = memcalc("solve", "batch", *words, "--json").json
    assert found["value"] == memcalc("infer", *words, "--json").json["max_batch"]
    assert found["limited_by"]["reason"] == "the cache's pool"


def test_fewest_gpus_and_why_one_less_is_too_few(memcalc) -> None:  # type: ignore[no-untyped-def]
    words = ("llama-3.1-8b", "--gpu", "a100-80gb", "--fsdp", "--micro-batch", "1", "--json")
    found = memcalc("solve", "gpus", *words).json
    assert found["value"] == 2 and found["first_failing"] == 1
    assert found["limited_by"]["grows"] == "optimizer"


def test_more_layers_than_the_model_has_are_stated_as_its_own(memcalc) -> None:  # type: ignore[no-untyped-def]
    found = memcalc("solve", "layers", *_SMALL, "--json").json
    assert found["value"] > 12
    assert f"--set model.num_hidden_layers={found['value']}" in found["at_value"]["command"]


def test_nothing_fits_is_3_with_what_is_lacking(memcalc) -> None:  # type: ignore[no-untyped-def]
    outcome = memcalc("solve", "micro-batch", "llama-3.1-8b", "--gpu", "4090")
    assert outcome.status == 3
    assert "nothing fits: not even micro-batch 1" in outcome.out and "lacks" in outcome.out
    assert memcalc("solve", "gpus", "llama-3.1-70b", "--gpu", "h100", "--layers", "20").status == 3


def test_the_page_is_80_columns_but_for_commands(memcalc) -> None:  # type: ignore[no-untyped-def]
    outcome = memcalc("solve", "micro-batch", *_SMALL, "--recompute", "full")
    lines = outcome.out.splitlines()
    assert "\x1b" not in outcome.out
    assert all(len(line) <= 80 for line in lines if not line.startswith("memcalc "))
    assert sum(line.startswith("memcalc estimate gpt2") for line in lines) == 2
    quiet = memcalc("solve", "micro-batch", *_SMALL, "-q").out
    assert quiet.startswith("micro-batch ") and quiet.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "argument: got none; rule: memcalc solve WHAT MODEL"),
        (("seq",), "solve: got no MODEL; rule: memcalc solve WHAT MODEL"),
        (("hops", "gpt2"), "solve: got 'hops', not known"),
        (("micro_batch", "gpt2"), "solve: got no GPU"),  # as it is spelt elsewhere
        (("seq", "gpt2"), "solve: got no GPU; rule: --gpu, --cluster or --gpu-memory"),
        (("seq", "gpt2", "--seq", "512"), "--seq: got 512; rule: solve seq finds it"),
        (("gpus", "gpt2", "--dp", "2"), "--dp: got 2; rule: solve gpus finds it"),
        (("batch", "gpt2", "--recompute", "full"), "--recompute: not an option of serving"),
        (("seq", "gpt2", "--batch", "2"), "--batch: not an option of training"),
        (("seq", "gpt2", "--gpu", "h100", "--step", "0"), "--step: got 0; rule: at least 1"),
        (("seq", "gpt2", "--gpu", "h100", "--tp", "5"), "tp=5 does not divide"),
        (("micro-batch", "gpt2", "--gpu", "h100,4090"), "--gpu: got 2 values"),
        (("seq", "gpt2", "--json", "-q"), "--quiet: got --json too"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(memcalc, words, said) -> None:  # type: ignore[no-untyped-def]
    outcome = memcalc("solve", *words)
    assert outcome.status == 2 and outcome.error.startswith(said), outcome.err


def test_a_run_file_gives_the_setup(memcalc, tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "run.toml"
    memcalc("estimate", *_SMALL, "--recompute", "full", "--micro-batch", "3", "--save", path)
    stated = memcalc("solve", "micro-batch", *_SMALL, "--recompute", "full", "--json").json
    assert (
        memcalc("solve", "micro-batch", "--config", path, "--json").json["value"] == stated["value"]
    )
