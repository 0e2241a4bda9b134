"""The summary recovers the constants that synthetic points were made from."""

from __future__ import annotations

from typing import Any

import pytest

from memcalc.harness.calibration.calibration_summary import summarise

_T0, _W = 4e-6, 4.3e12
_P = {"forward": 780e12, "dgrad": 740e12, "wgrad": 700e12}
Row = dict[str, Any]


def _point(kind: str, seconds: float, **what: Any) -> Row:
    row = {
        "kind": kind,
        **what,
        "median_s": seconds,
        "p10_s": seconds * 0.98,
        "p90_s": seconds * 1.02,
    }
    for name in ("flops", "bytes"):
        if name in what:
            row[f"{name}_per_s"] = what[name] / seconds
    return row


def _gemm(m: int, n: int, k: int, part: str = "forward", **what: Any) -> Row:
    flops, moved = 2.0 * m * n * k, 2.0 * (m * k + k * n + m * n)
    seconds = _T0 + max(flops / _P[part], moved / _W)
    said = {"m": m, "n": n, "k": k, "dtype": "bf16", "part": part, "flops": flops, "bytes": moved}
    return _point(what.pop("kind", "gemm"), seconds, **said, **what)


def _products() -> list[Row]:
    shapes = [(8192, n, 4096) for n in (4096, 6144, 28672)] + [(16384, 4096, 14336)]
    return [_gemm(*shape, part=part) for shape in shapes for part in _P]


def _in_graphs() -> list[Row]:
    how = {"kind": "fixed", "what": "gemm", "how": "graph"}
    tiny, skinny = _gemm(16, 64, 64, **how), _gemm(64, 4096, 4096, **how)
    eager = _gemm(16, 64, 64, kind="fixed", what="gemm", how="eager")
    return [tiny, skinny, {**eager, "median_s": 9e-6}]  # a launch: not part of the fit


def test_products_give_each_part_its_ceiling() -> None:
    copy = _point("bandwidth", 1.0, what="copy", tensor_bytes=2**30, bytes=4e12)
    rows = summarise([copy, *_products(), *_in_graphs()])["gemm"]
    by_part = {row["part"]: row for row in rows}
    assert list(by_part) == ["all", *_P]
    assert by_part["all"]["t0_s"] == pytest.approx(_T0, rel=0.02)
    assert by_part["all"]["bytes_per_s"] == pytest.approx(_W, rel=0.02)
    assert by_part["all"]["n"] == 14 and 0 < by_part["all"]["median_relative_error"] < 0.06
    for part, ceiling in _P.items():
        assert by_part[part]["flops_per_s"] == pytest.approx(ceiling, rel=1e-3)
        assert by_part[part]["n"] == 4


def test_a_dtype_with_few_products_borrows_the_fixed_cost() -> None:
    few = [
        {**_gemm(8192, 4096, 4096), "dtype": "fp8", "median_s": _T0 + 2 * 8192 * 4096**2 / 1.4e15}
    ]
    rows = summarise([*_products(), *_in_graphs(), *few])["gemm"]
    [fp8] = [row for row in rows if row["dtype"] == "fp8"]
    assert fp8["t0_from"] == "bf16" and fp8["n"] == 1 and "median_relative_error" not in fp8
    assert fp8["flops_per_s"] == pytest.approx(1.4e15, rel=0.01)


def test_without_graphs_the_eager_products_show_the_fixed_cost() -> None:
    eager = [{**row, "how": "eager"} for row in _in_graphs()[:2]]
    [whole, *_] = summarise([*_products(), *eager])["gemm"]
    assert whole["t0_s"] == pytest.approx(_T0, rel=0.02) and whole["n"] == 14


def test_elementwise_operations() -> None:
    kernel_s, rate = 3e-6, 3.8e12
    points = [_point("fixed", kernel_s, what="addition", how="graph")]
    for size in (1e7, 1e8, 1e9):
        for kernels in (1, 2, 5):
            seconds = kernels * kernel_s + size / rate
            points.append(_point("elementwise", seconds, what="x", kernels=kernels, bytes=size))
    points.append(_point("bandwidth", 1.0, what="copy", tensor_bytes=2**30, bytes=4e12))
    [row] = summarise(points)["elementwise"]
    assert row["t0_s"] == pytest.approx(kernel_s) and row["bytes_per_s"] == pytest.approx(rate)
    assert row["of_copy"] == pytest.approx(0.95) and row["n"] == 10


def test_collectives() -> None:
    alpha, rate = 14e-6, 337e9
    points = [
        _point("collective", alpha + size / rate, what="all_gather", ranks=8, backend="nccl",
               message_bytes=size, bus_bytes=size)
        for size in (224, 2**20, 2**25, 2**29)
    ]  # fmt: skip
    [row] = summarise(points)["collective"]
    assert row["alpha_s"] == pytest.approx(alpha, rel=1e-3)
    assert row["bus_bytes_per_s"] == pytest.approx(rate, rel=1e-3)


def test_attention_keeps_each_length_and_fits_the_limit() -> None:
    limit, half = 700e12, 900.0
    points = []
    for s in (8192, 1024, 2048):
        flops = 2.0 * (16384 // s) * 32 * s * s * 128
        seconds = flops / limit * (1 + half / s)
        points.append(
            _point("attention", seconds, kernel="cudnn", direction="forward", head_dim=128,
                   heads=32, kv_heads=8, seq_len=s, flops=flops)
        )  # fmt: skip
    [row] = summarise(points)["attention"]
    assert row["seq_len"] == [1024, 2048, 8192]
    assert row["flops_per_s_at"] == sorted(row["flops_per_s_at"])
    assert row["flops_per_s"] == pytest.approx(limit) and row["half_seq_len"] == pytest.approx(half)


def test_two_depths_give_a_block_and_the_rest() -> None:
    setup = {"model": "m", "seq_len": 8, "micro_batch_size": 1, "precision": "bf16"}
    points = [_point("step", s, layers=n, phases={}, **setup) for n, s in ((4, 0.5), (2, 0.3))]
    [row] = summarise(points)["two_depth"]
    assert row["layers"] == [2, 4] and row["step_s"] == [0.3, 0.5]
    assert row["block_s"] == pytest.approx(0.1) and row["rest_s"] == pytest.approx(0.1)
    assert summarise(points[:1]) == {}


def test_optimizers_over_several_sizes_and_one_point_alone() -> None:
    points = [
        _point("optimizer", n * 28 / 4e12, what="adamw", impl="fused", dtype="fp32", parameters=n,
               bytes=28 * n)
        for n in (125_000_000, 10**9)
    ]  # fmt: skip
    for point in points:
        point["tensors"] = point["parameters"] // 1_000_000
    clip = _point("optimizer", 1e-3, what="clip", dtype="fp32", parameters=10, tensors=1, bytes=120)
    adamw, clip = summarise([*points, clip])["optimizer"]
    assert adamw["s_per_parameter"] == pytest.approx(28 / 4e12) and adamw["n"] == 2
    assert "s_per_tensor" not in adamw
    assert clip["n"] == 1 and clip["relative_spread"] == pytest.approx(0.02)


def test_small_tensors_show_what_each_costs() -> None:
    def one(parameters: int, tensors: int) -> Row:
        seconds = 28 * parameters / 4e10 + 3e-6 * tensors
        return _point("optimizer", seconds, what="adamw", impl="foreach", dtype="fp32",
                      parameters=parameters, tensors=tensors, bytes=28 * parameters)  # fmt: skip

    [row] = summarise([one(10**6, 1), one(8 * 10**6, 8), one(65536, 64)])["optimizer"]
    assert row["s_per_tensor"] == pytest.approx(3e-6)
    assert row["s_per_parameter"] == pytest.approx(28 / 4e10)


def test_a_step_that_only_its_tensors_explain_still_has_a_rate() -> None:
    points = [
        _point("optimizer", 3e-6 * tensors, what="adamw", impl="foreach", dtype="fp32",
               parameters=parameters, tensors=tensors, bytes=28 * parameters)
        for parameters, tensors in ((4096, 4), (8192, 4), (4096, 16))
    ]  # fmt: skip
    [row] = summarise(points)["optimizer"]
    assert row["bytes_per_s"] > 0 and row["s_per_tensor"] == 0


def test_products_whose_loads_are_not_hidden_are_a_sum() -> None:
    points = []
    for m, n, k in ((64, 128, 128), (512, 512, 64), (64, 2048, 512), (256, 64, 1024)):
        for part in _P:
            flops, moved = 2.0 * m * n * k, 4.0 * (m * k + k * n + m * n)
            seconds = 5e-6 + flops / 1e11 + moved / 1e10
            points.append(_point("gemm", seconds, m=m, n=n, k=k, dtype="fp32", part=part,
                                 flops=flops, bytes=moved))  # fmt: skip
    rows = {row["part"]: row for row in summarise(points)["gemm"]}
    assert {row["form"] for row in rows.values()} == {"sum"}
    assert rows["all"]["t0_s"] == pytest.approx(5e-6, rel=1e-3)
    assert rows["all"]["bytes_per_s"] == pytest.approx(1e10, rel=1e-3)
    assert rows["wgrad"]["flops_per_s"] == pytest.approx(1e11, rel=1e-3)


def test_launches_are_seconds_a_kernel() -> None:
    points = [_point("launch", n * 7e-6, precision="fp32", layers=layers, kernels=n)
              for layers, n in ((2, 210), (4, 400))]  # fmt: skip
    [row] = summarise(points)["launch"]
    assert row["seconds"] == pytest.approx(7e-6) and row["n"] == 2


def test_constants_of_generating_are_found_again() -> None:
    """Put in: t0 and W by rows of a product; t0, W and P of attention over a cache."""
    points = [
        _point("few_rows", rows * 1e-6 + moved / (rows * 1e9), name="linear", dtype="bf16", rows=rows,
               bytes=moved, flops=1)
        for rows in (1, 4) for moved in (1e5, 1e6, 4e6)
    ]  # fmt: skip
    points += [
        _point("decode_attention", 2e-6 + moved / 1e10 + flops / 2e9, dtype="fp32", bytes=moved,
               flops=flops)
        for moved, flops in ((1e5, 1e5), (1e6, 1e5), (1e6, 4e6), (2e5, 2e6))
    ]  # fmt: skip
    points += [_point("launch_decode", n * 3e-6, precision="bf16", layers=layers, kernels=n)
               for layers, n in ((2, 210), (4, 400))]  # fmt: skip
    found = summarise(points)
    for row in found["few_rows"]:
        assert row["t0_s"] == pytest.approx(row["rows"] * 1e-6, rel=1e-3)
        assert row["bytes_per_s"] == pytest.approx(row["rows"] * 1e9, rel=1e-3)
    [cached] = found["decode_attention"]
    assert cached["bytes_per_s"] == pytest.approx(1e10, rel=1e-3)
    assert cached["flops_per_s"] == pytest.approx(2e9, rel=1e-3)
    assert found["launch_decode"][0]["seconds"] == pytest.approx(3e-6)


def test_nothing_measured_gives_an_empty_summary() -> None:
    assert summarise([]) == {}
