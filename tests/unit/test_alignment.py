"""Alignment of a product's rows: which dimensions count, and products that others measured."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memcalc.engine.timing.alignment import PARTS, STEPS, aligned, share_left
from memcalc.engine.timing.kernel_times import gemm_s
from memcalc.errors import ConfigError
from memcalc.inputs.hardware import load_gpu
from memcalc.inputs.rates import rates_of

A100 = rates_of(load_gpu("a100-80gb")[0])
side = st.integers(1, 9000)
#: (batch, m, n, k), TFLOP/s on an A100 in fp16: attention's two products, heads of 130 to 228 and of 216
#: (EleutherAI/cookbook, sizing/results/transformer_data/h_sweep.out). No constant is taken from them.
ODD_HEADS = [
    ((64, 2048, 2048, 130), 69.5), ((64, 2048, 130, 2048), 88.6),
    ((64, 2048, 2048, 142), 73.7), ((64, 2048, 142, 2048), 89.7),
    ((64, 2048, 2048, 218), 93.4), ((64, 2048, 218, 2048), 120.0),
    ((64, 2048, 2048, 228), 92.2), ((64, 2048, 228, 2048), 126.1),
]  # fmt: skip
#: Logits of a vocabulary that is odd, a multiple of 2, 4, 8, 16 and 128 (vocab_v_sweep.out, medians).
VOCABULARIES = [
    (51137, 74.3), (51138, 138.5), (51140, 139.9), (51144, 226.8), (51152, 251.7), (51200, 255.4),
]  # fmt: skip


def tflops(*shape: int) -> float:
    batch, m, n, k = shape
    return float(2 * batch * m * n * k / gemm_s(A100, "fp16", *shape) / 1e12)


@pytest.mark.parametrize(
    ("elements", "left"),
    [(1, 0.29), (2, 0.55), (4, 0.55), (12, 0.55), (8, 0.89), (24, 0.89), (16, 0.985), (96, 0.985),
     (64, 1.0), (192, 1.0)],
)  # fmt: skip
def test_the_share_left_follows_the_largest_power_of_two(elements, left):
    assert share_left(2, "forward", 1, 7, elements * 1024 + elements, 128) == pytest.approx(
        share_left(2, "forward", 1, 7, elements, 128)
    )
    assert share_left(2, "forward", 1, 7, elements, 128) == pytest.approx(left)


def test_bytes_count_not_elements():
    assert share_left(4, "forward", 1, 7, 12, 128) == pytest.approx(0.89)
    assert share_left(1, "forward", 1, 7, 12, 128) == pytest.approx(0.55)


def test_rows_of_tokens_are_not_contiguous_in_any_product():
    assert share_left(2, "forward", 1, 4097, 4096, 4096) == 1
    assert share_left(2, "dgrad", 1, 4097, 4096, 4096) == 1
    assert share_left(2, "wgrad", 1, 4096, 4096, 4097) == 1
    assert share_left(2, "wgrad", 1, 4097, 4096, 4096) == pytest.approx(0.29)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("place", [1, 2, 3])
def test_any_dimension_of_a_batched_product_counts(part, place):
    shape = [8, 2048, 2048, 2048]
    shape[place] = 150
    assert share_left(2, part, *shape) == pytest.approx(0.55)


@given(part=st.sampled_from(PARTS), batch=st.integers(1, 3), m=side, n=side, k=side)
def test_the_share_is_one_of_the_table_and_better_for_whole_rows(part, batch, m, n, k):
    share = share_left(2, part, batch, m, n, k)
    assert min(abs(share - known) for known in (1.0, *(left for _, left in STEPS))) < 1e-12
    assert share <= share_left(2, part, batch, 64 * m, 64 * n, 64 * k) == 1


def test_arrays_give_what_numbers_give():
    widths = np.array([1, 2, 8, 16, 64, 150])
    whole = share_left(2, "wgrad", 4, 2048, widths, 2048)
    alone = [share_left(2, "wgrad", 4, 2048, int(width), 2048) for width in widths]
    assert whole == pytest.approx(alone)
    assert list(aligned(2, 4, 2048, widths, 2048)) == [0, 0, 1, 1, 1, 0]
    seconds = gemm_s(A100, "bf16", 4, 2048, widths, 2048)
    assert seconds == pytest.approx([gemm_s(A100, "bf16", 4, 2048, int(w), 2048) for w in widths])


def test_an_unknown_part_is_refused():
    with pytest.raises(ConfigError, match="part of a product"):
        share_left(2, "sideways", 1, 8, 8, 8)


@pytest.mark.parametrize(("shape", "measured"), ODD_HEADS)
def test_products_of_odd_heads_are_near_the_measured(shape, measured):
    """Without alignment they would come out 36 to 68 % too fast."""
    assert tflops(*shape) == pytest.approx(measured, rel=0.17)


@pytest.mark.parametrize(("vocabulary", "measured"), VOCABULARIES)
def test_logits_of_odd_vocabularies_are_near_the_measured(vocabulary, measured):
    assert tflops(1, 8192, vocabulary, 14336) == pytest.approx(measured, rel=0.06)


@pytest.mark.parametrize(("gpu", "dtype"), [("a100-80gb", "fp32"), ("mi300x", "bf16")])
def test_only_tensor_cores_of_nvidia_lose(gpu, dtype):
    rates = rates_of(load_gpu(gpu)[0])
    odd, even = (gemm_s(rates, dtype, 1, 4096, n, 4096) for n in (4095, 4096))
    assert odd == pytest.approx(even, rel=0.01)
    assert gemm_s(A100, "bf16", 1, 4096, 4095, 4096) > 3 * gemm_s(A100, "bf16", 1, 4096, 4096, 4096)
