"""Sizes of published quantised checkpoints, from nothing but a model's configuration and a format.

A file holds more than tensors: a header, and in a GGUF file the tokenizer. What is on top must be small,
and the same for files of one model. Sources: the listings of the named repositories on the Hugging Face
Hub; llama.cpp, tools/quantize/quantize.cpp, QUANT_OPTIONS (sizes of Llama-3-8B in GiB).
"""

from __future__ import annotations

from functools import cache

import pytest

from memcalc.engine.make_plan import plan_of
from memcalc.engine.quantised import Weights, weights_of_plan
from memcalc.errors import ConfigError
from memcalc.inputs.models import load_model
from memcalc.inputs.training import TrainingSetup
from memcalc.inputs.weights import load_weights
from memcalc.units import GIB


@cache
def weights(model: str, fmt: str) -> Weights:
    setup = TrainingSetup(seq_len=16, stack="hf", precision="bf16")
    return weights_of_plan(plan_of(load_model(model), setup), load_weights(fmt))


#: Llama-2-7B's vocabulary and other metadata in the GGUF files of TheBloke/Llama-2-7B-GGUF.
LLAMA2_METADATA = 741_056


@pytest.mark.parametrize(
    ("fmt", "size"),
    [
        ("Q4_0", 3_825_807_040), ("Q4_K_M", 4_081_004_224), ("Q5_K_M", 4_783_156_928),
        ("Q6_K", 5_529_194_176), ("Q8_0", 7_161_089_728),
    ],
)  # fmt: skip
def test_gguf_files_of_llama_2_7b_to_the_byte(fmt, size):
    assert weights("llama-2-7b", f"gguf:{fmt}").file_bytes + LLAMA2_METADATA == size


@pytest.mark.parametrize(
    ("model", "fmt", "size", "most"),
    [
        ("qwen2-7b", "gguf:Q8_0", 8_098_522_912, 6_000_000),
        ("qwen2.5-0.5b", "gguf:Q4_K_M", 397_808_192, 6_000_000),  # width 896: no multiple of 256
        ("llama-3.1-8b", "gguf:Q4_K_M", 4_920_739_232, 8_000_000),
    ],
)
def test_gguf_files_are_tensors_and_a_tokenizer(model, fmt, size, most):
    assert 0 < size - weights(model, fmt).file_bytes < most


@pytest.mark.parametrize(
    ("fmt", "gib"),
    [
        ("Q4_0", 4.34), ("Q4_1", 4.78), ("Q5_0", 5.21), ("Q5_1", 5.65), ("Q8_0", 7.96),
        ("Q2_K", 2.96), ("Q3_K_S", 3.41), ("Q3_K_M", 3.74), ("Q3_K_L", 4.03), ("Q4_K_S", 4.37),
        ("Q4_K_M", 4.58), ("Q5_K_S", 5.21), ("Q5_K_M", 5.33), ("Q6_K", 6.14),
    ],
)  # fmt: skip
def test_every_mixture_of_llama_cpps_own_table(fmt, gib):
    """The table has two digits, and its files 4 to 8 MB of tokenizer (0.004 to 0.008 GiB)."""
    found = weights("llama-3-8b", f"gguf:{fmt}").file_bytes / GIB
    assert found == pytest.approx(gib, abs=0.014)


@pytest.mark.parametrize(("model", "size"), [("gpt-oss-20b", 13_761_264_768),
                                            ("gpt-oss-120b", 65_248_815_744)])  # fmt: skip
def test_mxfp4_checkpoints_of_gpt_oss_to_the_byte(model, size):
    """`total_size` of openai/gpt-oss-*'s model.safetensors.index.json."""
    assert weights(model, "mxfp4").file_bytes == size


@pytest.mark.parametrize(
    ("fmt", "gigabytes"), [("gptq", 3.90), ("gptq-g64", 4.02), ("gptq-g32", 4.28), ("awq", 3.89)]
)
def test_gptq_and_awq_checkpoints_of_llama_2_7b(fmt, gigabytes):
    """TheBloke/Llama-2-7B-GPTQ and -AWQ, in GB of two digits; some of them store biases of zeros."""
    assert weights("llama-2-7b", fmt).file_bytes / 1e9 == pytest.approx(gigabytes, abs=0.0075)


def test_fractions_of_a_bit_add_up():
    """A 4096 x 4096 matrix: 8 bits of scale for 64, 32 for 16384, tables of 1088 bytes, an offset."""
    held = next(h for h in weights("llama-2-7b", "nf4").leaves if ".q_proj." in h.name)
    n = 4096 * 4096
    assert held.resident_bytes == n // 2 + n // 64 + 4 * n // 16384 + 64 + 1024 + 4
    assert weights("llama-2-7b", "bf16").bits_per_weight == 16


def test_parts_of_the_model_sum_to_the_whole():
    found = weights("mixtral-8x7b", "gguf:Q4_K_M")
    assert sum(found.by_role().values()) == found.resident_bytes
    assert set(found.by_role()) == {
        "linear", "experts", "router", "embedding", "head", "vector",
    }  # fmt: skip
    assert found.allocated_bytes() >= found.resident_bytes
    assert found.parameters == 46_702_792_704


def test_experts_stay_in_sixteen_bits_under_bitsandbytes():
    """transformers keeps them as one parameter a layer, which it swaps for nothing."""
    found = weights("mixtral-8x7b", "nf4")
    experts = sum(held.elements for held in found.leaves if held.role == "experts")
    assert found.by_role()["experts"] == 2 * experts


@pytest.mark.parametrize(
    ("model", "fmt"),
    [("deepseek-v2-lite", "gguf:Q4_K_M"), ("phi-3-mini", "gguf:Q4_K_M"), ("llama-2-7b", "mxfp4")],
)
def test_what_a_format_is_not_defined_for_is_refused(model, fmt):
    with pytest.raises(ConfigError, match="nearest valid") as error:
        weights(model, fmt)
    assert "\n" not in str(error.value)
