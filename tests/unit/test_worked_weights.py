"""Worked cases of quantised weights: teaching examples and published tables, each with its unit.

GB is 10^9 bytes, GiB 2^30. Tables of spring 2023 hold for the formats of that time: today's are smaller
and not errors.
"""

from __future__ import annotations

import math

import pytest

from memcalc.inputs.weights import load_weights
from memcalc.units import GIB
from tests.unit.test_weight_files import weights

GB = 10**9
MODELS = ("llama-7b", "llama-13b", "llama-33b", "llama-65b")


@pytest.mark.parametrize(("billions", "gigabytes"), [(7, 14), (13, 26)])
def test_w1_sixteen_bit_weights(billions, gigabytes):
    """n billion parameters in 16 bit: 2n GB."""
    found = weights("llama-7b", "fp16")
    assert found.file_bytes / found.parameters * billions * GB == gigabytes * GB


def test_w4_one_byte_for_every_state(record_property):
    """Teaching example: 6.0e9 parameters, every element of every state one byte, context 1.3 GB.

    25.3 GB: parameters 6, gradients 6, two AdamW states 12. No training keeps its states so: int8
    matrices take no gradient, and 8-bit optimizers keep scales beside their bytes.
    """
    part = load_weights("int8").packing("int8").parts[0]
    each = part.bytes_of(1000, 1000) / 10**6
    total = 6.0e9 * each * (1 + 1 + 2) + 1.3e9
    assert total == pytest.approx(25.3e9, rel=0.01)
    record_property("bytes of int8 weights of llama-7b", weights("llama-7b", "int8").resident_bytes)


@pytest.mark.parametrize(("model", "gib"), [*zip(MODELS, (13, 24, 60, 120), strict=True)])
def test_w9_sixteen_bits(model, gib):
    assert weights(model, "fp16").file_bytes / GIB == pytest.approx(gib, rel=0.04)


@pytest.mark.parametrize(("model", "gib"), [*zip(MODELS, (3.9, 7.8, 19.5, 38.5), strict=True)])
def test_w9_four_bits_of_spring_2023(model, gib):
    """5.0 bits for every element: 32 codes of 4 bits and an fp32 scale."""
    assert weights(model, "ggml-2023:Q4_0").file_bytes / GIB == pytest.approx(gib, rel=0.04)


@pytest.mark.parametrize(("model", "gigabytes"), [("llama-7b", 7.8), ("llama-13b", 14.9)])
def test_w9_eight_bits_of_spring_2023(model, gigabytes):
    """9.0 bits an element at the vocabulary of 49,953 of the project whose table it is, in GB."""
    found = weights(model, "ggml-2023:Q8_0")
    hidden = 4096 if model == "llama-7b" else 5120
    extra = 2 * (49_953 - 32_000) * hidden * 9 / 8
    assert (found.file_bytes + extra) / GB == pytest.approx(gigabytes, rel=0.04)


@pytest.mark.parametrize(
    ("fmt", "sizes"),
    [
        ("nf4", (3.60, 6.71, 16.22, 32.09)),  # embedding and head in fp16
        ("int8", (6.53, 12.44, 30.71, 61.32)),
        ("gguf:Q4_0", (3.56, 6.86, 17.09, 34.27)),  # the head in Q6_K
    ],
)
def test_w9_todays_formats_are_smaller(fmt, sizes):
    found = [round(weights(model, fmt).resident_bytes / GIB, 2) for model in MODELS]
    assert found == list(sizes)


def test_w11_cards_of_32_gigabytes_for_65_billion_parameters():
    """130.6 GB: five cards in decimal; four of 31.75 to 32.0 GiB hold it with 1 GiB a card or less."""
    size = weights("llama-65b", "fp16").file_bytes
    assert size / GB == pytest.approx(130.6, abs=0.05)
    assert math.ceil(size / (32 * GB)) == 5
    assert size < 4 * 31.75 * GIB, "four cards load it"
    fullest = 20 * (size - 2 * 32_000 * 8192 * 2) / 80 + 32_000 * 8192 * 2
    assert fullest / GIB == pytest.approx(30.6, abs=0.1)
    assert 31.75 - fullest / GIB < 1.5, "too little to serve"


def test_w12_the_base_of_65_billion_parameters_in_four_bits():
    """34.5 GB with double quantisation, embedding and head in fp16."""
    assert weights("llama-65b", "nf4").resident_bytes / GB == pytest.approx(34.5, abs=0.1)


@pytest.mark.parametrize(("fmt", "gigabytes"), [("int8", 6.7), ("nf4", 4.0)])
def test_p3_the_base_of_chatglm_6b(fmt, gigabytes):
    """Matrices of the layers quantised (5.64e9 elements), the embedding (0.53e9) in fp16."""
    found = weights("chatglm-6b", fmt)
    assert found.resident_bytes / GB == pytest.approx(gigabytes, abs=0.05)
    assert found.quantised_parameters == 28 * (4 * 4096 * 4096 + 2 * 4096 * 16384)
