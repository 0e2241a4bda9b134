"""Errors: one root, one line, the nearest valid value."""

from __future__ import annotations

import pytest

from memcalc.errors import (
    ConfigError,
    MemcalcError,
    NotInThisVersionError,
    nearest,
    spelled,
    unknown,
)


def test_an_input_error_is_a_memcalc_error_and_a_value_error():
    assert issubclass(ConfigError, MemcalcError) and issubclass(ConfigError, ValueError)
    assert issubclass(NotInThisVersionError, ConfigError)


@pytest.mark.parametrize(
    ("name", "best"), [("llama-3.1-8", "llama-3.1-8b"), ("GPT-2", "gpt2"), ("qwen3-8", "qwen3-8b")]
)
def test_the_nearest_name_comes_first(name, best):
    assert nearest(name, ["llama-3.1-8b", "gpt2", "qwen3-8b", "opt-66b"])[0] == best


def test_what_begins_as_written_comes_first_and_one_spelling_of_each():
    assert nearest("mistral", ["mixtral", "mistral-7b"]) == ["mistral-7b", "mixtral"]
    assert nearest("rtx 3081", ["rtx3080", "rtx-3080", "RTX 3080"]) == ["RTX 3080"]


@pytest.mark.parametrize(
    ("said", "meant"),
    [("AdamW", "adamw"), ("adamw8bit", "adamw-8bit"), ("LLAMA.CPP", "llama.cpp"), ("lion", "lion"),
     ("adam", "adam"), ("", ""), ("x_y", "x_y")],
)  # fmt: skip
def test_a_word_of_a_closed_list_may_be_spelt_otherwise(said, meant):
    assert spelled(said, ["adamw", "adamw-8bit", "llama.cpp", "lion", "xy", "x-y"]) == meant


def test_nothing_is_near_nonsense():
    assert nearest("zzzzzzzz", ["llama-3.1-8b", "gpt2"]) == []


def test_an_unknown_name_is_told_in_one_line():
    close = str(unknown("optimizer", "adamv", ["adamw", "sgd"]))
    assert close == "optimizer: got 'adamv', not known; nearest: adamw"
    short = str(unknown("optimizer", "zzzzzz", ["adamw", "sgd"]))
    assert short == "optimizer: got 'zzzzzz', not known; valid: adamw, sgd"
    long = str(unknown("model", "zzzzzz", [f"name-{i}" for i in range(80)]))
    assert "80 names" in long and "\n" not in long and "`" not in long
    names = [f"name-{i}" for i in range(80)]
    assert "see `memcalc list models`" in str(
        unknown("model", "zzzzzz", names, "memcalc list models")
    )
