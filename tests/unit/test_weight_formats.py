"""Weight formats as files: names, aliases, checks, and how a packing counts bytes."""

from __future__ import annotations

import pytest

from memcalc.errors import ConfigError
from memcalc.inputs import profiles, weights
from memcalc.inputs.weights import Part, formats_of, load_weights, weight_names

FILE = """
name = "own"
kernel = "fused"
source = "a paper"
verified = "a test"
[packings.p]
source = "its code"
multiple = [1, 32]
parts = [{ name = "codes", block = [1, 32], bytes = 18 }]
[formats.own]
description = "4.5 bits"
roles = { linear = "p" }
"""


def read(tmp_path, text: str):
    path = tmp_path / "own.toml"
    path.write_text(text)
    return formats_of(path)


@pytest.mark.parametrize("name", weight_names())
def test_every_format_is_read_and_has_its_sources(name):
    found = load_weights(name)
    assert found.name == name
    assert found.source and found.verified and found.description
    assert found.profile_hash
    assert found.is_dense == (not found.roles)
    assert hash(found) is not None


def test_names_are_unique_over_families():
    names = weight_names()
    assert len(names) == len({profiles.normal_name(name) for name in names})


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("NF4", "nf4"), ("int4", "gptq"), ("gguf:q4_k_m", "gguf:Q4_K_M"), ("Q4_K_M", "gguf:Q4_K_M"),
        ("gguf:Q4_K", "gguf:Q4_K_M"), ("llm-int8", "int8"), ("bf16", "bf16"),
    ],
)  # fmt: skip
def test_usual_spellings_find_the_format(said, meant):
    assert load_weights(said).name == meant


@pytest.mark.parametrize("name", ["nf5", "gguf:Q4_K_X", "", "../dense", "x" * 300])
def test_a_wrong_name_is_a_one_line_error(name):
    with pytest.raises(ConfigError) as error:
        load_weights(name)
    assert "\n" not in str(error.value)


def test_the_nearest_name_is_said():
    with pytest.raises(ConfigError, match="gguf:Q4_K_M"):
        load_weights("gguf:Q4_KM")


@pytest.mark.parametrize(
    ("part", "size"),
    [
        (Part("flat", 64, 4), 4 * -(-50 * 33 // 64)),
        (Part("row", (1, 0), 4), 4 * 50),
        (Part("matrix", (0, 0), 1024), 1024),
        (Part("column", (0, 1), 4), 4 * 33),
        (Part("tile", (16, 16), 4), 4 * 4 * 3),
        (Part("element", (1, 1), 1), 50 * 33),
    ],
)
def test_a_part_counts_cut_blocks_whole(part, size):
    assert part.bytes_of(50, 33) == size


def test_a_file_of_ones_own_is_read(tmp_path):
    found = read(tmp_path, FILE)["own"]
    packing = found.packing("p")
    assert packing.bytes_of(4, 64, "memory") == 4 * 2 * 18
    assert packing.fits(3, 64) and not packing.fits(3, 65)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('kernel = "fused"', 'kernel = "magic"', "kernel"),
        ('linear = "p"', 'linear = "q"', "packing"),
        ('linear = "p"', 'norms = "p"', "role"),
        ("bytes = 18", "bytes = 0", "bytes"),
        ("bytes = 18", 'bytes = "18"', "bytes"),
        ("block = [1, 32]", "block = -1", "block"),
        ("block = [1, 32]", "block = [1, 32, 2]", "block"),
        ("multiple = [1, 32]", "multiple = [0, 32]", "multiple"),
        ("multiple = [1, 32]", 'fallback = "gone"', "fallback"),
        ('source = "its code"\n', "", "source"),
        ('source = "a paper"\n', "", "source"),
        ("bytes = 18", 'bytes = 18, stored = "disk"', "stored"),
        ('roles = { linear = "p" }', "", "roles"),
        ('roles = { linear = "p" }', 'roles = { linear = "p" }\nbits = 4', "bits"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_one_line(tmp_path, old, new, said):
    assert old in FILE
    with pytest.raises(ConfigError, match=said) as error:
        read(tmp_path, FILE.replace(old, new))
    assert "\n" not in str(error.value)


def test_rules_are_checked_too(tmp_path):
    rule = 'rules = [{ ops = ["v_proj"], when = "sometimes", packing = "p" }]\n'
    with pytest.raises(ConfigError, match="sometimes"):
        read(tmp_path, FILE + rule)
    good = rule.replace("sometimes", "more-bits")
    assert read(tmp_path, FILE + good)["own"].rules[0].ops == ("v_proj",)
    assert weights.CONDITIONS[0] == "always"
