"""Worked cases taught about training memory, recomputed by the engine.

Each figure is one that teaching material states (surveys and courses on training large models), with
the unit it was meant in: GB is 10^9 bytes, GiB 2^30. Rules of thumb are held to be exact where the
case is arithmetic on model states; activations are the engine's own.
"""

from __future__ import annotations

import pytest

from memcalc import TrainingSetup, estimate
from memcalc.engine.dtypes import ITEMSIZE
from memcalc.engine.kernel_choice import PRECISIONS
from memcalc.engine.results import Estimate
from memcalc.units import GIB

GB = 10**9


def run(model: str, seq_len: int = 128, gpu: str | None = None, **setup: object) -> Estimate:
    return estimate(model, TrainingSetup(seq_len=seq_len, **setup), gpu=gpu, allocator=False)


def bytes_per_parameter(result: Estimate, *states: str) -> float:
    """Bytes of the named states over the number of parameters; exact, as it is a whole number."""
    total = sum(result.memory.states[name] for name in states)
    return total / result.model.parameters


ALL_STATES = ("parameters", "gradients", "optimizer", "master")


@pytest.mark.parametrize(("billions", "gigabytes"), [(7, 14), (13, 26), (65, 130)])
def test_w1_sixteen_bit_weights_take_two_gigabytes_a_billion(billions, gigabytes):
    """Rule of thumb: n billion parameters, 2n GB of fp16 or bf16 weights."""
    each = bytes_per_parameter(run("llama-7b", precision="bf16"), "parameters")
    assert each * billions * GB == gigabytes * GB


@pytest.mark.parametrize("precision", ["bf16-mixed", "fp16-mixed", "bf16-master"])
def test_w2_mixed_precision_adamw_takes_sixteen_bytes_a_parameter(precision):
    """Published arithmetic (ZeRO, arXiv:1910.02054, sec. 3.1): 2 + 2 + 12; 7 billion make 112 GB.

    Autocast keeps fp32 parameters and gradients instead, 4 + 4 + 8: the same sum.
    """
    result = run("llama-7b", precision=precision)
    assert bytes_per_parameter(result, *ALL_STATES) == 16
    assert bytes_per_parameter(result, *ALL_STATES) * 7 * GB == 112 * GB
    parts = [bytes_per_parameter(result, name) for name in ALL_STATES]
    assert parts == ([2, 2, 8, 4] if precision == "bf16-master" else [4, 4, 8, 0])


def test_w5_a_six_billion_model_in_fp32():
    """Teaching example: 6.0e9 parameters, 24 GB of them and 48 GB of AdamW states."""
    result = run("llama-7b", precision="fp32")
    assert bytes_per_parameter(result, "parameters") * 6 * GB == 24 * GB
    assert bytes_per_parameter(result, "optimizer") * 6 * GB == 48 * GB


def test_w6_two_tensors_a_layer_approximate_activations(record_property):
    """Teaching approximation: (hidden + MLP width) x 2048 tokens x 32 layers, one byte each: 990 MB.

    The engine's own bytes for the same sample, in bf16 with written-out norms and flash attention,
    are 16 T h + 8 T + 8 T d a + 4 T a + 24 + 8 T f a layer, and go into the report beside it.
    """
    tokens, h, f, heads, d, layers = 2048, 4096, 11008, 32, 128, 32
    approximation = (h + f) * tokens * layers
    assert approximation == 989_855_744
    assert round(approximation / 10**6) == 990
    result = estimate(
        "llama-7b",
        TrainingSetup(seq_len=tokens, precision="bf16"),
        kernels={"norm": "hand"},
        allocator=False,
    )
    layer = 16 * tokens * h + 8 * tokens + 8 * tokens * d * heads + 4 * tokens * heads + 24
    layer += 8 * tokens * f
    assert result.memory.saved_per_layer_bytes == layer
    assert result.memory.saved_for_backward_bytes > layers * layer > 2 * approximation
    record_property("two-tensor approximation, bytes", approximation)
    record_property("saved for backward, bytes", result.memory.saved_for_backward_bytes)


def test_w7_the_largest_model_an_eighty_gigabyte_card_loads_in_fp16():
    """Bound: below 80e9 / 2 = 40 billion parameters; 42.9 billion if the card had 80 GiB."""
    each = bytes_per_parameter(run("llama-7b", precision="bf16"), "parameters")
    assert 80 * GB / each == 40 * GB
    assert round(80 * GIB / each / GB, 1) == 42.9
    assert run("llama-33b", precision="bf16").memory.states["parameters"] < 80 * GB
    assert run("falcon-40b", precision="bf16").memory.states["parameters"] > 80 * GB


def test_w8_the_largest_model_an_eighty_gigabyte_card_trains():
    """Bound on states alone: 80e9 / 16 = 5 billion parameters; 5.37 billion with 80 GiB."""
    each = bytes_per_parameter(run("llama-7b"), *ALL_STATES)
    assert 80 * GB / each == 5 * GB
    assert round(80 * GIB / each / GB, 2) == 5.37
    assert run("llama-3.2-3b", gpu="h100-80gb", recompute="full").fits is True
    assert run("llama-7b", gpu="h100-80gb", recompute="full").fits is False


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_w13_a_7b_model_does_not_train_in_fp32_on_24_gigabytes(recompute):
    """Stated as plainly impossible; the states alone are 16 bytes a parameter, 107.8 GB."""
    result = run("llama-7b", gpu="rtx-3090", precision="fp32", recompute=recompute)
    assert result.fits is False
    assert result.verdict == "does-not-fit"
    states = sum(result.memory.states.values())
    assert states == 16 * result.model.parameters > 4 * (result.memory.usable_bytes or 0)
    assert round(states / GB, 1) == 107.8


def test_w16_tf32_stores_four_bytes_an_element():
    """Format: 1 sign + 8 exponent + 10 mantissa = 19 significant bits, kept in 32."""
    precision = PRECISIONS["tf32"]
    assert ITEMSIZE[precision.param_dtype] == ITEMSIZE[precision.compute_dtype] == 4
    tf32, fp32 = (run("llama-3.2-1b", precision=name) for name in ("tf32", "fp32"))
    assert tf32.memory.to_dict() == fp32.memory.to_dict()
    assert any("19 significant bits" in said for said in tf32.assumptions)
