"""Shares read off profiler traces: a recorded one, hand-made intervals, damaged files."""

from __future__ import annotations

import gzip
import json
import math
import random
import subprocess
import sys
from pathlib import Path

import pytest

from memcalc.errors import ConfigError
from memcalc.harness.watch import kernel_trace
from memcalc.harness.watch.kernel_trace import (
    classify,
    read_trace,
    shares_of,
    summarise,
    union_length,
)

RECORDED = Path(__file__).parents[1] / "data" / "kineto_v100_step.json"
SHARES = ("busy_share", "tensor_core_share", "communication_share", "idle_share")
GEMM = "nvjet_tst_128x256_64x4_2x1_v_bz_coopA_TNT"
NCCL = "ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgsStorage<4096ul>)"
ADD = "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float> >"


def kernel(name, start, length, stream=7, device=0):
    where = {"device": device, "stream": stream}
    return {"ph": "X", "cat": "kernel", "name": name, "ts": start, "dur": length, "args": where}


def copy(kind, start, length):
    name = f"{kind.title()} (Device)"
    return {"ph": "X", "cat": f"gpu_{kind}", "name": name, "ts": start, "dur": length}


def step(number, start, length, cat="user_annotation"):
    name = f"ProfilerStep#{number}"
    return {"ph": "X", "cat": cat, "name": name, "ts": start, "dur": length}


def test_a_recorded_step_gives_the_intervals_its_recorders_expect():
    # 13410 us of step, thirty kernels of 48 us that never overlap, two copies of 1 us.
    found = shares_of(RECORDED)
    assert found["steps"] == 1 and found["span_from"] == "ProfilerStep"
    assert found["span_s"] == pytest.approx(13410e-6)
    assert found["kernel_s"] == pytest.approx(48e-6)
    assert found["busy_s"] == pytest.approx(50e-6)
    assert found["idle_share"] == pytest.approx(1 - 50 / 13410)
    assert found["gpu_events"] == 32
    assert found["communication_share"] == 0.0


def test_fp32_products_of_the_recorded_step_do_not_count_as_tensor_cores():
    found = shares_of(RECORDED)
    assert found["tensor_core_share"] == 0.0
    # volta_sgemm twice 3 us, gemmSN_TN 3 and 2 us, gemmSN_NN 2 us
    assert found["time_by_class_s"]["vector matmul"] == pytest.approx(13e-6)
    longest = found["kernels"][0]
    assert longest["count"] == 8 and "AddFunctor" in longest["name"]
    assert longest["total_s"] == pytest.approx(8e-6)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (GEMM, "matmul"),
        ("ampere_bf16_s16816gemm_bf16_128x256_ldg8_f2f_stages_64x3_tn", "matmul"),
        ("void cutlass::Kernel2<cutlass_80_tensorop_s1688gemm_128x128_32x3_nn_align4>", "matmul"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", "matmul"),
        (
            "void pytorch_flash::flash_fwd_kernel<pytorch_flash::Flash_fwd_kernel_traits>",
            "attention",
        ),
        ("fmha_cutlassB_bf16_aligned_64x64_k128_sm80", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_7", "attention"),
        ("void cutlass::Kernel2<cutlass_80_simt_sgemm_128x32_8x5_nn_align1>", "vector matmul"),
        ("ampere_sgemm_128x64_tn", "vector matmul"),
        ("void gemv2T_kernel_val<int, int, __nv_bfloat16>", "vector matmul"),
        ("triton_tem_fused_mm_3", "triton-template"),
        ("triton_poi_fused_mul_silu_1", "triton"),
        (NCCL, "communication"),
        ("ncclKernel_AllReduce_RING_LL_Sum_float(ncclWorkElem)", "communication"),
        ("void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor>", "optimizer"),
        (ADD, "other"),
    ],
)
def test_kernels_are_told_by_their_names(name, expected):
    known = classify(name)
    assert known.name == expected
    assert known.tensor_cores == (expected in ("matmul", "attention"))


def test_shares_of_overlapping_streams_count_each_moment_once():
    found = summarise(
        [
            step(3, 0, 100),
            kernel(GEMM, 10, 30),
            kernel(GEMM, 20, 10, stream=13),  # inside the first
            kernel(ADD, 35, 15),  # 35..50, overlaps the product's last 5
            kernel(NCCL, 45, 30, stream=20),  # 45..75: 5 beside the addition, 25 exposed
            copy("memcpy", 46, 2),  # inside both
            copy("memset", 80, 5),
        ]
    )
    assert found["tensor_core_share"] == pytest.approx(0.30)
    assert found["communication_share"] == pytest.approx(0.30)
    assert found["exposed_communication_share"] == pytest.approx(0.25)
    assert found["kernel_share"] == pytest.approx(0.65)
    assert found["busy_share"] == pytest.approx(0.70)
    assert found["idle_share"] == pytest.approx(0.30)
    assert found["time_by_class_s"]["matmul"] == pytest.approx(40e-6)  # plain sum


def test_a_copy_does_not_hide_communication():
    found = summarise([step(0, 0, 100), kernel(NCCL, 10, 20), copy("memcpy", 10, 20)])
    assert found["exposed_communication_share"] == pytest.approx(0.20)


def test_union_of_random_intervals_equals_counting_every_unit():
    draw = random.Random(3)
    for _ in range(200):
        many = [
            (a, a + draw.randrange(0, 12)) for a in draw.choices(range(60), k=draw.randrange(9))
        ]
        counted = {unit for start, end in many for unit in range(start, end)}
        assert union_length(many) == len(counted)


def test_two_steps_span_from_the_first_mark_to_the_end_of_the_last():
    found = summarise([step(5, 100, 50), step(6, 150, 50), kernel(GEMM, 110, 25)])
    assert found["steps"] == 2 and found["span_s"] == pytest.approx(100e-6)
    assert found["tensor_core_share"] == pytest.approx(0.25)


def test_kernels_that_outlive_their_step_lengthen_it_and_earlier_ones_are_cut():
    found = summarise([step(1, 100, 50), kernel(ADD, 80, 40), kernel(GEMM, 140, 60)])
    assert found["span_s"] == pytest.approx(100e-6)
    assert found["busy_s"] == pytest.approx(80e-6)


def test_marks_of_the_cpu_win_over_those_of_the_gpu():
    marks = [step(1, 0, 100), step(1, 40, 20, cat="gpu_user_annotation")]
    assert summarise([*marks, kernel(GEMM, 40, 20)])["idle_share"] == pytest.approx(0.8)
    assert summarise([marks[1], kernel(GEMM, 40, 20)])["idle_share"] == 0.0


def test_without_marks_the_span_is_first_to_last_kernel():
    found = summarise([kernel(GEMM, 10, 20), kernel(ADD, 40, 10)])
    assert found["span_from"] == "kernels" and found["steps"] is None
    assert found["idle_share"] == pytest.approx(0.25)


def test_several_gpus_are_averaged_not_overlaid():
    found = summarise([step(1, 0, 100), kernel(GEMM, 0, 80), kernel(GEMM, 0, 20, device=1)])
    assert found["devices"] == 2 and found["idle_share"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    "events",
    [
        [],
        [{"ph": "X", "cat": "cpu_op", "name": "aten::mm", "ts": 1, "dur": 5}],
        [step(1, 0, 100)],
        [{"cat": "kernel", "name": "no times"}],
        [
            {"cat": "kernel", "name": "a", "ts": "1", "dur": 5},
            {"cat": "kernel", "ts": 1, "dur": -4},
        ],
        [{"cat": "kernel", "name": "nan", "ts": math.nan, "dur": 1}],
        [{}, {"args": None, "cat": None, "name": None}],
    ],
    ids=["empty", "cpu only", "marks only", "no times", "bad times", "nan", "no fields"],
)
def test_without_gpu_work_shares_are_unknown_not_zero(events):
    found = summarise(events)
    assert [found[name] for name in SHARES] == [None] * len(SHARES)
    assert found["span_s"] is None and found["kernels"] == []


def test_missing_fields_of_some_events_leave_the_others_counted():
    odd = [{"cat": "kernel", "ts": 5, "dur": 5}, {"cat": "kernel", "name": GEMM, "ts": 3}]
    assert summarise([*odd, kernel(GEMM, 10, 10)])["kernel_s"] == pytest.approx(15e-6)


def test_gzipped_and_bare_lists_read_the_same(tmp_path):
    events = [step(1, 0, 100), kernel(GEMM, 0, 50)]
    plain, packed = tmp_path / "a.json", tmp_path / "b.json.gz"
    plain.write_text(json.dumps(events))
    packed.write_bytes(gzip.compress(json.dumps({"traceEvents": events}).encode()))
    assert shares_of(plain) == shares_of(packed)
    assert read_trace(plain) == events


@pytest.mark.parametrize(
    "content",
    [b"", b'{"traceEvents": [', b"{}", b'{"traceEvents": 3}', gzip.compress(b"[]")[:-9], None],
    ids=["empty", "cut", "no list", "not a list", "cut gzip", "missing"],
)
def test_a_file_that_is_no_trace_is_an_error_in_one_line(tmp_path, content):
    path = tmp_path / "t.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"^trace: got .*t\.json") as caught:
        shares_of(path)
    assert "\n" not in str(caught.value)


def test_reading_a_trace_needs_no_torch():
    code = (
        f"import sys; from memcalc.harness.watch.kernel_trace import shares_of; from pathlib import Path; \
        shares_of(Path({str(RECORDED)!r})); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_every_class_says_why():
    assert all(known.reason for known in kernel_trace.CLASSES)
    assert len({known.name for known in kernel_trace.CLASSES}) == len(kernel_trace.CLASSES)


def test_profiling_on_the_cpu_records_two_steps_and_no_shares(tmp_path):
    torch = pytest.importorskip("torch")
    from memcalc.harness.watch.profiling import profile_step

    calls = []
    weight = torch.randn(64, 64)
    out = tmp_path / "deep" / "trace.json.gz"
    found = profile_step(
        lambda: calls.append(weight @ weight), torch.device("cpu"), out
    )  # fmt: skip
    assert len(calls) == 4 and found["trace"] == "trace.json.gz"
    assert found["steps"] == 2 and found["idle_share"] is None
    marks = [e["name"] for e in read_trace(out) if "ProfilerStep" in e.get("name", "")]
    assert len(marks) == 2
    assert any(e.get("name") == "aten::mm" for e in read_trace(out))
