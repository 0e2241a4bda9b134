"""Utilisation is arithmetic on named figures: FLOPs a token, tokens/s, a peak."""

from __future__ import annotations

import pytest
import torch

from memcalc.engine.make_plan import plan_of
from memcalc.harness.calibration.timing import TINY
from memcalc.harness.utilisation import (
    Peak,
    datasheet_peak,
    matmul_dtype,
    measured_ceiling,
    utilisation,
)
from memcalc.inputs.hardware import load_gpu
from memcalc.inputs.models import load_model
from memcalc.inputs.training import TrainingSetup
from tests.harness.models import cpu_plan


def test_llama_3_8b_at_8192_has_the_published_flops_a_token() -> None:
    plan = plan_of(load_model("llama-3-8b"), TrainingSetup(seq_len=8192, recompute="full"))
    found = utilisation(plan, 10_153.0, Peak(989.4e12, "bf16", "h100-80gb"), None, None)
    assert found["model_flops_per_token"] / 1e9 == pytest.approx(57.91, abs=0.01)
    assert found["model_flops_causal_per_token"] / 1e9 == pytest.approx(51.47, abs=0.01)
    # NVIDIA's 8xH100 figure for this model and length: 52.8 % causal, 59.4 % full square.
    assert found["datasheet"]["mfu_causal"] == pytest.approx(0.528, abs=0.001)
    assert found["datasheet"]["mfu"] == pytest.approx(0.594, abs=0.001)
    assert found["datasheet"]["hfu"] > found["datasheet"]["mfu"]
    assert found["measured_matmul"] is None and found["throughput"] is None


def test_each_method_has_its_own_denominator() -> None:
    ceiling = {"n": 2048, "dtype": "bf16", "flops_per_s": 5e11}
    found = utilisation(cpu_plan(), 1000.0, Peak(1e12, "bf16", "x"), ceiling, 800.0)
    assert found["measured_matmul"]["mfu"] == pytest.approx(2 * found["datasheet"]["mfu"])
    assert found["datasheet"]["mfu"] == pytest.approx(found["model_flops_per_token"] * 1000 / 1e12)
    assert found["throughput"] == {"reference_tokens_per_s": 800.0, "ratio": 1.25}


@pytest.mark.parametrize(
    ("said", "gib", "slug"),
    [
        ("NVIDIA H200", 139.8, "h200-141gb"),
        ("NVIDIA H100 80GB HBM3", 79.1, "h100-80gb"),
        ("NVIDIA H100 PCIe", 79.1, "h100-pcie-80gb"),
        ("NVIDIA A100-SXM4-40GB", 39.4, "a100-40gb"),
        ("NVIDIA A100 80GB PCIe", 79.2, "a100-pcie-80gb"),
        ("NVIDIA GeForce RTX 4090", 23.6, "rtx-4090"),
        ("NVIDIA L40S", 44.4, "l40s"),
    ],
)
def test_the_drivers_name_finds_the_dense_rate(said: str, gib: float, slug: str) -> None:
    peak = datasheet_peak(said, int(gib * 2**30), "bf16")
    assert peak == Peak(load_gpu(slug)[0].peak_flops_per_s["bf16"], "bf16", slug)


@pytest.mark.parametrize(
    ("said", "gib", "dtype"),
    [
        ("NVIDIA GeForce GTX 1080", 8, "bf16"),
        ("NVIDIA H100 80GB HBM3", 9.8, "bf16"),  # a partition carries the whole card's name
        ("Tesla T4", 14.7, "bf16"),  # a known card without such a rate
        ("AMD EPYC", None, "bf16"),
    ],
)
def test_no_rate_is_better_than_a_wrong_one(said: str, gib: float | None, dtype: str) -> None:
    assert datasheet_peak(said, None if gib is None else int(gib * 2**30), dtype) is None


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("fp32", "fp32"), ("tf32", "tf32"), ("bf16-mixed", "bf16"), ("fp8-mixed", "fp8")],
)
def test_the_peak_is_that_of_the_dtype_matmuls_run_in(precision: str, dtype: str) -> None:
    assert matmul_dtype(cpu_plan(precision=precision)) == dtype


def test_the_ceiling_is_a_matmul_timed_here() -> None:
    found = measured_ceiling(torch.device("cpu"), "fp32", TINY)
    assert found["n"] in (512, 1024, 2048) and found["dtype"] == "fp32"
    assert 1e8 < found["p10_flops_per_s"] <= found["flops_per_s"] <= found["p90_flops_per_s"] < 1e14
