"""A calibration of a device that behaves just as the default rates say predicts the same steps.

Points at the sizes of a GPU's calibration are priced with the default rates of an H100, go through the
fits of `memcalc calibrate` and come back as measured rates: what both predict of real decoders may differ
by what the simpler formulas of a calibration lose. No GPU is needed, and none is stood in for: this
shows that constants keep their meaning from fit to formula.
"""

from __future__ import annotations

from typing import Any

import pytest

from memcalc import TrainingSetup
from memcalc.engine.device_side import device_of
from memcalc.engine.make_plan import plan_of
from memcalc.engine.timing.gemm_time import product_s
from memcalc.engine.timing.kernel_times import attention_s, gemm_s, moved_s
from memcalc.engine.timing.step_time import step_time
from memcalc.harness.calibration.calibration_residual import without_residual
from memcalc.harness.calibration.calibration_shaped import add_shaped, shaped
from memcalc.harness.calibration.calibration_summary import summarise
from memcalc.harness.calibration.microbench import CUDA
from memcalc.harness.calibration.microbench_attention import Shape
from memcalc.harness.calibration.microbench_gemm import PARTS, Product
from memcalc.harness.calibration.microbench_memory import OPERATIONS
from memcalc.inputs.hardware import load_gpu
from memcalc.inputs.measured_rates import measured_rates
from memcalc.inputs.models import load_model
from memcalc.inputs.rates import rates_of

GPU = load_gpu("h100-80gb")[0]
#: Without the residual, which a calibration has from steps that are not made up here.
RATES = without_residual(rates_of(GPU))


def _point(kind: str, seconds: float, **what: Any) -> dict[str, Any]:
    found = {"kind": kind, **what, "median_s": seconds, "p10_s": seconds, "p90_s": seconds}
    rates = {f"{n}_per_s": what[n] / seconds for n in ("flops", "bytes") if n in what}
    return {**found, **rates}


def _products() -> list[dict[str, Any]]:
    found = []
    for tokens in CUDA.tokens:
        for out, into in (*CUDA.linears, *CUDA.small_linears):
            for part in PARTS:
                one = Product(tokens, out, into, "bf16", part)
                seconds = gemm_s(RATES, "bf16", 1, *one.shape, part=part)
                found.append(
                    _point("gemm", seconds, **one.what(), flops=one.flops, bytes=one.bytes)
                )
    for shape in ((16, 64, 64), CUDA.skinny):
        one = Product(*shape, "bf16")
        seconds = gemm_s(RATES, "bf16", 1, *one.shape)
        said = {**one.what(), "what": "gemm", "how": "graph"}
        found.append(_point("fixed", seconds, **said, flops=one.flops, bytes=one.bytes))
    return found


def _attentions() -> list[dict[str, Any]]:
    found = []
    for d in CUDA.head_dims:
        for s in CUDA.sequences:
            shape = Shape(CUDA.attention_tokens // s, *CUDA.heads, s, d)
            whole = (shape.b, shape.a, shape.k, s, s, d, d)
            for direction in ("forward", "backward"):
                seconds = attention_s(RATES, "flash", direction, whole)
                found.append(_point("attention", seconds, kernel="flash", direction=direction,
                                    head_dim=d, dtype="bf16", seq_len=s, heads=shape.a,
                                    kv_heads=shape.k, flops=shape.flops(direction)))  # fmt: skip
    return found


def _moved() -> list[dict[str, Any]]:
    found = [_point("fixed", 2e-6, what="addition", how="eager"),
             *(_point("launch", n * RATES.launch_s, precision="bf16", layers=layers, kernels=n)
               for layers, n in ((2, 200), (4, 380)))]  # fmt: skip
    for rows, width in CUDA.pointwise:
        for op in OPERATIONS:
            moved = op.passes * rows * width * 2
            seconds = moved_s(RATES, moved, op.kernels)
            found.append(
                _point("elementwise", seconds, what=op.name, kernels=op.kernels, bytes=moved)
            )
    return found


def _profile() -> dict[str, Any]:
    points = [*_products(), *_attentions(), *_moved()]
    return {
        "name": "as-the-default", "torch": "2.11.0", "date": "2026-11-21T00:00:00+00:00",
        "device": {"name": GPU.name, "type": "cuda"},
        "points": points, "summary": summarise(points),
    }  # fmt: skip


@pytest.fixture(scope="module")
def measured() -> Any:
    profile = _profile()
    add_shaped(profile, GPU)
    return without_residual(measured_rates(profile, GPU).rates)


@pytest.fixture(scope="module")
def plain() -> Any:
    """The same without the default's formula: t0, P and W alone."""
    return without_residual(measured_rates(_profile(), GPU).rates)


@pytest.mark.parametrize(
    ("model", "layers", "seq", "micro"),
    [("llama-3.1-8b", 4, 8192, 1), ("llama-3.1-8b", 2, 2048, 4), ("llama-3.2-1b", 8, 2048, 8),
     ("gpt2-xl", 8, 1024, 8), ("mistral-7b-v0.3", 4, 4096, 2), ("qwen2.5-1.5b", 10, 2048, 4)],
)  # fmt: skip
def test_steps_are_predicted_alike(
    measured: Any, plain: Any, model: str, layers: int, seq: int, micro: int
) -> None:
    setup = TrainingSetup(
        seq_len=seq, micro_batch_size=micro, precision="bf16", num_layers=layers,
        optimizer_impl="fused",
    )  # fmt: skip
    plan = plan_of(load_model(model), setup, {})
    default = step_time(plan, device_of("h100-80gb"), RATES).step_s
    by_shape, alone = (step_time(plan, device_of("h100-80gb"), r).step_s for r in (measured, plain))
    assert by_shape == pytest.approx(default, rel=0.02)
    assert alone == pytest.approx(default, rel=0.1)


def test_the_formula_with_the_smaller_error_is_taken() -> None:
    profile = _profile()
    add_shaped(profile, GPU)
    [row] = [row for row in profile["summary"]["gemm"] if row["part"] == "all"]
    base = rates_of(GPU)
    assert row["shaped"]["by"] == base.name
    assert row["shaped"]["flops_per_s"] == pytest.approx(base.gemm["bf16"].flops_per_s, rel=1e-3)
    assert row["shaped"]["wgrad"] == pytest.approx(base.gemm["bf16"].wgrad, rel=1e-3)
    assert row["shaped"]["mean_relative_error"] < 1e-3 < row["mean_relative_error"]
    found = measured_rates(profile, GPU).rates.gemm["bf16"]
    assert found.padding == base.gemm["bf16"].padding
    row["shaped"]["mean_relative_error"] = 2 * row["mean_relative_error"]
    assert measured_rates(profile, GPU).rates.gemm["bf16"].padding == 0.0
    row["shaped"] |= {"mean_relative_error": 0.0, "by": "default-other"}
    assert measured_rates(profile, GPU).rates.gemm["bf16"].padding == 0.0


@pytest.mark.parametrize("factor", [0.7, 1.3])
def test_a_slower_device_has_a_lower_ceiling(factor: float) -> None:
    """Seconds of large products scale with the ceiling: all others are the same, so it is found."""
    rate = RATES.gemm["bf16"]
    slower = rate._replace(flops_per_s=rate.flops_per_s / factor)
    points = []
    for one in (
        Product(8192, n, 4096, "bf16", part) for n in (4096, 6144, 28672) for part in PARTS
    ):
        seconds = product_s(slower, 1, *one.shape) * (1.1 if one.part == "dgrad" else 1.0)
        points.append(_point("gemm", seconds, **one.what(), flops=one.flops, bytes=one.bytes))
    found = shaped(points, rate)
    assert found is not None and found["n"] == 9 and found["mean_relative_error"] < 0.01
    assert found["flops_per_s"] == pytest.approx(slower.flops_per_s, rel=0.01)
    assert found["dgrad"] == pytest.approx(1.1) and found["wgrad"] == pytest.approx(1.0)
    assert shaped(points[:2], rate) is None
