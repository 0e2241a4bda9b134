"""Numbers in and out, with their units."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memcalc.errors import ConfigError
from memcalc.units import (
    GIB,
    count_text,
    gib,
    parse_count,
    parse_decimal_count,
    parse_memory,
    si,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", 1), ("2048", 2048), ("8k", 8192), ("8K", 8192), ("1m", 1 << 20), (" 4,096 ", 4096),
     ("1.5k", 1536), ("8_192", 8192)],
)  # fmt: skip
def test_positions_count_in_binary(text, value):
    assert parse_count(text) == value


@pytest.mark.parametrize(
    ("text", "value"), [("52k", 52_000), ("1.4T", 1_400 * 10**9), ("7b", 7 * 10**9), ("300", 300)]
)
def test_tokens_count_in_decimal(text, value):
    assert parse_decimal_count(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("80GB", 80 * 10**9), ("80GiB", 80 * GIB), ("512 mib", 512 << 20), ("0.5tb", 5 * 10**11)],
)
def test_memory_says_which_gigabyte(text, value):
    assert parse_memory(text) == value


@pytest.mark.parametrize("text", ["", "k", "-1", "8kk", "8 q", "1e3", "1.3", "nan", "9" * 30])
def test_bad_counts_are_refused_by_name(text):
    with pytest.raises(ConfigError, match=r"^seq: ") as error:
        parse_count(text, "seq")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["80", "80 gigs", "GB", "-1GB", "9999999TiB"])
def test_bad_memory_is_refused_by_name(text):
    with pytest.raises(ConfigError, match=r"^reserve: "):
        parse_memory(text, "reserve")


@given(st.integers(0, 1 << 50))
def test_a_plain_number_is_itself(value):
    assert parse_count(str(value)) == parse_decimal_count(str(value)) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [(80 * GIB, "80.00 GiB"), (GIB // 2, "0.50 GiB"), (1 << 20, "1.00 MiB"), (12, "12 B")],
)
def test_bytes_are_shown_in_binary_units(value, text):
    assert gib(value) == text


def test_prefixes():
    assert si(57.9e9, "FLOP") == "57.9 GFLOP"
    assert si(3.0) == "3"
    assert count_text(8_030_261_248) == "8.03 B"
    assert count_text(124_439_808) == "124 M"
