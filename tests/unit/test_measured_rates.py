"""Measured calibrations as rates: the time formulas give back what the constants say."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from memcalc.engine.timing.gemm_time import few_rows_s
from memcalc.engine.timing.kernel_times import attention_s, collective_s, gemm_s, moved_s
from memcalc.errors import ConfigError
from memcalc.inputs.hardware import load_gpu
from memcalc.inputs.measured_rates import measured_rates
from memcalc.inputs.rates import rates_of

GPU = load_gpu("h100-80gb")[0]
#: Constants of each class as `memcalc calibrate` writes them.
SUMMARY: dict[str, list[dict[str, Any]]] = {
    "gemm": [
        {"dtype": "bf16", "part": "all", "form": "max", "t0_s": 4e-6, "flops_per_s": 7e14,
         "bytes_per_s": 3e12, "n": 30},
        {"dtype": "bf16", "part": "forward", "form": "max", "t0_s": 4e-6, "flops_per_s": 7.2e14,
         "bytes_per_s": 3e12, "n": 10},
        {"dtype": "bf16", "part": "wgrad", "form": "max", "t0_s": 4e-6, "flops_per_s": 6e14,
         "bytes_per_s": 3e12, "n": 10},
        {"dtype": "fp32", "part": "all", "form": "sum", "t0_s": 5e-6, "flops_per_s": 5e13,
         "bytes_per_s": 2e12, "n": 6},
    ],
    "attention": [
        {"kernel": "flash", "direction": "forward", "head_dim": 128, "dtype": "bf16",
         "flops_per_s": 6e14, "half_seq_len": 500.0, "n": 5},
        {"kernel": "flash", "direction": "backward", "head_dim": 128, "dtype": "bf16",
         "flops_per_s": 4e14, "half_seq_len": 300.0, "n": 5},
        {"kernel": "flash", "direction": "forward", "head_dim": 64, "dtype": "bf16",
         "flops_per_s": 4e14, "half_seq_len": 700.0, "n": 3},
    ],
    "elementwise": [{"t0_s": 3e-6, "bytes_per_s": 2.8e12, "n": 15}],
    "fixed": [{"what": "addition", "how": "eager", "seconds": 2e-6, "n": 1}],
    "launch": [{"precision": "bf16", "seconds": 6e-6, "kernels": 190, "n": 2},
               {"precision": "fp32", "seconds": 8e-6, "kernels": 190, "n": 2}],
    "optimizer": [
        {"what": "adamw", "impl": "fused", "dtype": "fp32", "s_per_parameter": 1e-11,
         "s_per_tensor": 1e-7, "bytes_per_s": 2.8e12, "n": 3},
        {"what": "clip", "dtype": "fp32", "s_per_parameter": 5e-12, "bytes_per_s": 2.8e12, "n": 1},
    ],
    "kernel": [{"what": "gelu", "dtype": "bf16", "bytes_per_s": 1e12, "n": 1}],
    "residual": [{"step": 1.04, "block": 1.1, "rest": 0.9, "n": 2}, {"step": 1.06, "n": 2}],
}  # fmt: skip


def _profile(device: str = "cuda", **summary: Any) -> dict[str, Any]:
    kept = {k: v for k, v in (copy.deepcopy(SUMMARY) | summary).items() if v is not None}
    return {
        "name": "it", "torch": "2.11.0", "date": "2026-11-21T00:00:00+00:00", "small": False,
        "device": {"name": "NVIDIA H100 80GB HBM3", "type": device}, "summary": kept,
    }  # fmt: skip


def _rates(device: str = "cuda", **summary: Any) -> Any:
    return measured_rates(_profile(device, **summary), GPU).rates


@pytest.mark.parametrize("shape", [(8192, 4096, 4096), (64, 4096, 4096), (16, 64, 64)])
def test_products_are_a_maximum_where_that_fitted(shape: tuple[int, int, int]) -> None:
    """The norm that joins the two terms is next to a maximum: at most 4.5 % above it."""
    m, n, k = shape
    compute, memory = 2 * m * n * k / 7.2e14, 2 * (m * k + k * n + m * n) / 3e12
    told = gemm_s(_rates(), "bf16", 1, m, n, k)
    assert 4e-6 + max(compute, memory) <= told * (1 + 1e-9)
    assert told <= 4e-6 + 1.045 * max(compute, memory)


def test_parts_have_their_own_ceilings_and_all_stands_in() -> None:
    rates = _rates()
    seconds = {p: gemm_s(rates, "bf16", 1, 8192, 8192, 8192, part=p) for p in ("forward", "dgrad",
                                                                             "wgrad")}  # fmt: skip
    assert seconds["wgrad"] / seconds["forward"] == pytest.approx(7.2 / 6)
    assert seconds["dgrad"] == seconds["forward"]  # no row of its own


def test_products_are_a_sum_where_that_fitted() -> None:
    m, n, k = 512, 1024, 256
    compute, memory = 2 * m * n * k / 5e13, 4 * (m * k + k * n + m * n) / 2e12
    assert gemm_s(_rates(), "fp32", 3, m, n, k) == pytest.approx(5e-6 + 3 * (compute + memory))


def test_what_is_lacking_is_scaled_from_the_default_and_listed() -> None:
    found, base = measured_rates(_profile(), GPU), rates_of(GPU)
    scale = 7e14 / base.gemm["bf16"].flops_per_s
    assert found.rates.gemm["fp16"].flops_per_s == pytest.approx(
        scale * base.gemm["fp16"].flops_per_s
    )
    assert {"products in fp16", "products in fp8", "attention cudnn"} <= set(found.filled)
    assert not {"products in bf16", "attention flash", "launches"} & set(found.filled)
    assert found.rates.links == base.links and "links" in found.filled
    bare = measured_rates(_profile(launch=None, elementwise=None), GPU)
    assert {"launches", "element-wise kernels"} <= set(bare.filled)
    assert bare.rates.memory.bytes_per_s == base.memory.bytes_per_s


@pytest.mark.parametrize(("width", "limit", "half"), [(128, 6e14, 500.0), (64, 4e14, 700.0)])
def test_attention_saturates_with_the_sequence(width: int, limit: float, half: float) -> None:
    s, name = 2048, f"flash bf16 forward {width}"
    flops = 2 * 2 * 32 * s * (s + 1) * width
    told = attention_s(_rates(), name, "forward", (2, 32, 8, s, s, width, width))
    assert told == pytest.approx(flops / limit * (1 + half / s), rel=1e-6)


def test_attention_has_a_rate_for_any_width_and_for_each_pass() -> None:
    rates, shape = _rates(), (1, 32, 8, 4096, 4096, 128, 128)
    forward = attention_s(rates, "flash", "forward", shape)
    assert forward == pytest.approx(attention_s(rates, "flash bf16 forward", "forward", shape))
    backward = attention_s(rates, "flash bf16 backward", "backward", shape)
    own = 2.5 * 6 / 4 * (1 + 300 / 4096) / (1 + 500 / 4096)
    assert backward / forward == pytest.approx(own, rel=1e-3)


def test_element_wise_kernels_and_those_with_a_rate_of_their_own() -> None:
    rates = _rates()
    assert moved_s(rates, 2.8e9, 2) == pytest.approx(2 * 3e-6 + 1e-3)
    assert moved_s(rates, 1e9, 1, "gelu bf16") == pytest.approx(3e-6 + 1e-3)


def test_launches_are_the_devices_own_or_added_to_every_kernel() -> None:
    gpu, cpu = _rates(), _rates("cpu")
    assert gpu.launch_s == pytest.approx(7e-6) and gpu.memory.t0_s == 3e-6
    assert cpu.launch_s == 0.0
    assert cpu.memory.t0_s == pytest.approx(7e-6 + 1e-6)  # less what a bare call already has
    assert cpu.gemm["fp32"].t0_s == pytest.approx(7e-6 + 3e-6)
    assert cpu.attention["flash"].t0_s == pytest.approx(7e-6)


def test_optimizers_residual_and_where_it_is_from() -> None:
    rates = _rates()
    assert rates.optimizer["adamw fused fp32"] == (1e-11, 1e-7)
    assert rates.optimizer["clip fp32"] == (5e-12, 0.0)
    assert rates.sum_residual == pytest.approx(1.05)
    bare = measured_rates(_profile(residual=None), GPU)
    assert bare.rates.sum_residual == rates_of(GPU).sum_residual
    assert "residual of whole steps" in bare.filled
    assert rates.verified and "NVIDIA H100" in rates.basis and rates.name == "it"


def test_collectives_that_were_measured_are_followed() -> None:
    rows = [{"what": kind, "ranks": ranks, "backend": "nccl", "hosts": 1, "alpha_s": 1e-6 * ranks,
             "bus_bytes_per_s": 3e11, "n": 4}
            for kind in ("all_reduce", "all_gather") for ranks in (8, 2)]  # fmt: skip
    found = measured_rates(_profile(collective=rows), GPU)
    assert "links" not in found.filled and found.rates.links.network == rates_of(GPU).links.network
    link = found.rates.links.link
    wire = 2 * 7 / 8 * 1e9
    assert collective_s(link, "all_reduce", 1e9, 8) == pytest.approx(8e-6 + wire / 3e11)
    assert collective_s(link, "all_gather", 1e9, 2) == pytest.approx(2e-6 + 0.5e9 / 3e11)
    gloo = [{**row, "backend": "gloo"} for row in rows]
    assert _rates(collective=gloo).links == rates_of(GPU).links
    apart = [{**row, "hosts": 2} for row in rows]
    far = _rates(collective=apart).links
    assert far.link == rates_of(GPU).links.link
    assert collective_s(far.network, "all_gather", 1e9, 8) == pytest.approx(8e-6 + 7e9 / 8 / 3e11)


def test_an_embeddings_gradient_has_its_own_rate() -> None:
    rows = [{"dtype": "bf16", "bytes_per_s": 5e11, "n": 1}]
    rates = _rates(embedding_backward=rows)
    told = moved_s(rates, 1e9, 2, "embedding_dense_backward fp32")
    assert told == pytest.approx(6e-6 + 1e9 / 5e11)


@pytest.mark.parametrize(
    "summary",
    [{"gemm": [{"part": "all", "flops_per_s": 1.0}]}, {"attention": [{"kernel": "flash"}]},
     {"elementwise": [{"bytes_per_s": 1.0}]},
     {"launch": [{"seconds": "long"}]}, {"optimizer": [{"what": "adamw"}]},
     {"collective": [{"backend": "nccl", "bus_bytes_per_s": 1.0}]}],
    ids=lambda summary: next(iter(summary)),
)  # fmt: skip
def test_a_summary_written_by_hand_is_refused_in_one_line(summary: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        measured_rates(_profile(**summary), GPU)
    assert "\n" not in str(caught.value) and "calibration: it: summary" in str(caught.value)


def test_an_earlier_calibration_without_the_newer_classes_is_read() -> None:
    old = copy.deepcopy(SUMMARY)
    for row in old["gemm"]:
        del row["form"]
    for row in old["attention"]:
        del row["dtype"]
    newer = dict.fromkeys(("launch", "kernel", "residual"))
    rates = _rates(gemm=old["gemm"], attention=old["attention"], **newer)
    assert gemm_s(rates, "bf16", 1, 8192, 8192, 8192) == pytest.approx(
        gemm_s(_rates(), "bf16", 1, 8192, 8192, 8192)
    )
    assert set(rates.attention) == set(_rates().attention)


DECODING = {
    "few_rows": [
        {"name": "linear", "dtype": "bf16", "rows": 4, "t0_s": 9e-6, "bytes_per_s": 5e9, "n": 3},
        {"name": "linear", "dtype": "bf16", "rows": 1, "t0_s": 4e-6, "bytes_per_s": 1e10, "n": 3},
    ],
    "decode_attention": [
        {"dtype": "bf16", "t0_s": 1e-6, "bytes_per_s": 8e9, "flops_per_s": 3e9, "n": 5}
    ],
    "launch_decode": [{"precision": "bf16", "seconds": 5e-6, "n": 2}],
    "residual_decode": [{"prompt": 1.2, "step": 1.0, "n": 1}, {"prompt": 1.0, "step": 1.1, "n": 1}],
}  # fmt: skip


def test_a_cpu_has_rates_of_generating() -> None:
    """Their launches are added to every kernel; a GPU's points are kept and not used."""
    assert _rates(**DECODING).generating is None
    found = _rates("cpu", **DECODING).generating
    assert found is not None and found.pass_residuals == (pytest.approx(1.1), pytest.approx(1.05))
    few = found.few_rows["linear bf16"]
    assert [one.rows for one in few] == [1, 4]
    # 2e-6 of a bare call are launching already
    assert few[0].t0_s == pytest.approx(5e-6 + 4e-6 - 2e-6) and few[0].bytes_per_s == 1e10
    assert found.decode_by["bf16"].t0_s == pytest.approx(5e-6)
    assert found.memory.t0_s < _rates("cpu", **DECODING).memory.t0_s
    assert _rates("cpu").generating is None


def test_products_of_few_rows_lie_between_those_measured() -> None:
    found = _rates("cpu", **DECODING).generating
    assert found is not None
    one, two, four = (few_rows_s(found, "mm", "bf16", (1, m, 512, 512)) for m in (1, 2, 4))
    assert one is not None and two is not None and four is not None
    read = 512 * 512 * 2
    assert one == pytest.approx(7e-6 + read / 1e10) and four == pytest.approx(12e-6 + read / 5e9)
    assert two == pytest.approx(one + (four - one) / 3)
    assert few_rows_s(found, "mm", "bf16", (1, 5, 512, 512)) is None
    assert few_rows_s(found, "mm", "fp32", (1, 1, 512, 512)) is None
    assert few_rows_s(found, "bmm", "bf16", (8, 1, 512, 512)) is None
