"""Conventions of FLOPs a token: the published figures of one run, and what must hold for any model."""

from __future__ import annotations

from dataclasses import fields

import pytest

from memcalc import ConfigError, TrainingSetup, estimate, load_gpu
from memcalc.engine.kernel_choice import PRECISIONS
from memcalc.inputs.training_names import PRECISIONS as NAMES
from memcalc.planning.utilisation import (
    Peak,
    conventions,
    doubts,
    dtype_of,
    matmul_dtype,
    peak_of,
    shares,
    sparse_peak_of,
    tokens_per_s_at,
)


def counted(model: str = "llama-3.1-8b", seq_len: int = 8192, **setup: object) -> dict[str, float]:
    result = estimate(model, TrainingSetup(seq_len=seq_len, **setup), allocator=False)
    return {row.name: row.flops_per_token for row in conventions(result)}


#: GFLOP a token of Llama-3-8B at 8192, worked out by hand from each project's formula: N_mm
#: 7,504,658,432, N 8,030,261,248, L a d s 1.0737e9.
BY_HAND = {
    "full-square": 57.91, "causal": 51.47, "all-parameters": 61.07, "counted": 60.06,
    "all-causal": 54.62, "chinchilla": 48.18,
}  # fmt: skip


@pytest.mark.parametrize(("name", "gflop"), BY_HAND.items())
def test_one_run_has_as_many_flops_as_there_are_conventions(name, gflop):
    assert round(counted()[name] / 1e9, 2) == gflop


def test_full_recomputation_adds_the_hardware_convention_and_executes_less_than_it_says():
    """68.63 by Megatron's formula, which computes the head again as well; causal attention."""
    found = counted(recompute="full")
    assert round(found["recomputed"] / 1e9, 2) == 68.63
    assert found["executed"] > counted()["executed"]
    assert "recomputed" not in counted()


@pytest.mark.parametrize("model", ["gpt2", "llama-3.2-1b", "mixtral-8x7b", "deepseek-v2-lite"])
def test_the_terms_are_the_ledgers(model):
    """Quadrupling what attends to what is linear in the sequence; the rest does not move."""
    short, long = counted(model, 256), counted(model, 512)
    squares = [2 * (found["full-square"] - found["causal"]) for found in (short, long)]
    assert squares[1] == pytest.approx(2 * squares[0], rel=1e-12)
    rest = [
        found["full-square"] - square for found, square in zip((short, long), squares, strict=True)
    ]
    assert rest[0] == pytest.approx(rest[1], rel=1e-12)
    assert short["chinchilla"] == long["chinchilla"]
    assert short["executed"] >= short["full-square"]


def test_a_share_turns_into_the_throughput_it_was_made_of():
    result = estimate("gpt2", TrainingSetup(seq_len=128), allocator=False)
    peak = Peak(312e12, "stated")
    for row in shares(result, 1000.0, peak):
        assert row.flops_per_s == row.convention.flops_per_token * 1000.0
        back = tokens_per_s_at(result, row.share, row.convention.name, peak)
        assert back == pytest.approx(1000.0, rel=1e-12)
    assert {row.share for row in shares(result, 1000.0, None)} == {None}


def test_peaks_are_dense_and_of_the_matmuls_dtype():
    gpu = load_gpu("h100-80gb")[0]
    assert peak_of(gpu, "bf16", None).flops_per_s == 989.4e12
    assert peak_of(gpu, "fp8", None).flops_per_s == 1978.9e12
    assert peak_of(gpu, "bf16", 500.0) == Peak(500e12, "stated")
    assert peak_of(None, "bf16", None) is None
    with pytest.raises(ConfigError, match="no datasheet rate in fp8"):
        peak_of(load_gpu("a100-80gb")[0], "fp8", None)


@pytest.mark.parametrize("precision", NAMES)
def test_the_dtype_of_a_precision_is_what_the_plans_matmuls_multiply(precision):
    result = estimate("gpt2", TrainingSetup(seq_len=64, precision=precision), allocator=False)
    compute = result.setup["kernels"]["compute_dtype"]
    expected = {"tf32": "tf32", "fp8-mixed": "fp8"}.get(precision, compute)
    assert dtype_of(precision) == matmul_dtype(result.setup) == expected
    assert precision in PRECISIONS and "precision" in {f.name for f in fields(TrainingSetup)}


def test_a_sparse_peak_is_named_and_a_dense_one_is_not():
    h100 = load_gpu("h100-80gb")[0]
    assert sparse_peak_of(Peak(1979e12, "stated"), h100, "bf16") == "h100-80gb"
    assert "h100-80gb" in sparse_peak_of(Peak(1979e12, "stated"), None, "bf16")
    assert sparse_peak_of(Peak(624e12, "stated"), None, "bf16").startswith("a100")
    for dense in (312e12, 989.4e12, 400e12):
        assert sparse_peak_of(Peak(dense, "stated"), None, "bf16") == ""
    assert sparse_peak_of(Peak(1979e12, "stated"), h100, "fp8") == ""


def test_more_than_the_peak_is_doubted():
    peak = Peak(312e12, "a100-80gb, bf16, dense datasheet")
    assert doubts(peak, None, "bf16", 0.99) == []
    (said,) = doubts(peak, None, "bf16", 1.5)
    assert "150.0%" in said and "--gpus" in said
