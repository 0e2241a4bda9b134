"""The micro-benchmarks at tiny sizes on the CPU: every kind of point, and every way to have none."""

from __future__ import annotations

import gc
import itertools
import json
import os
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from memcalc.harness.calibration import (
    calibrate,
    microbench_memory,
    microbench_step,
)
from memcalc.harness.calibration.microbench import CPU, CUDA, SMALL, Task
from memcalc.harness.calibration.microbench_gemm import PARTS, Product
from memcalc.harness.calibration.timing import TINY, Bench
from memcalc.harness.step import PHASES
from memcalc.inputs import calibrations

DEVICE = torch.device("cpu")
_NOT_ON_A_CPU = {
    "CUDA graphs need a CUDA device", "a CPU has no cudnn attention",
    "a CPU has no efficient attention",
}  # fmt: skip


@pytest.fixture(scope="module")
def told() -> list[tuple[str, int, int]]:
    return []


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def profile(told: list[tuple[str, int, int]]) -> Iterator[dict[str, Any]]:
    """One small calibration, shared by the tests of this file."""
    threads = torch.get_num_threads()
    yield calibrate.run(DEVICE, small=True, threads=1, progress=lambda *said: told.append(said))
    torch.set_num_threads(threads)


def _of(profile: dict[str, Any], kind: str, **wanted: Any) -> list[dict[str, Any]]:
    return [
        p for p in profile["points"]
        if p["kind"] == kind and all(p.get(k) == v for k, v in wanted.items())
    ]  # fmt: skip


def test_every_kind_of_point_is_measured(profile: dict[str, Any]) -> None:
    kinds = {point["kind"] for point in profile["points"]}
    assert kinds == set(calibrations.KINDS) - {"collective"}  # one process: nobody to talk to
    assert profile["small"] is True and profile["device"]["cpu_threads"] == 1


def test_only_what_a_cpu_lacks_is_skipped(profile: dict[str, Any]) -> None:
    assert {row["reason"] for row in profile["skipped"]} == _NOT_ON_A_CPU
    tasks = calibrate.tasks_of(SMALL)
    assert len(profile["points"]) + len(profile["skipped"]) == len(tasks), profile["skipped"]
    assert len({task.label for task in tasks}) == len(tasks)


def test_times_are_positive_and_rates_follow_from_them(profile: dict[str, Any]) -> None:
    for point in profile["points"]:
        assert 0 < point["p10_s"] <= point["median_s"] <= point["p90_s"], point
        assert point["batches"] >= 5 and point["calls"] >= point["batches"]
        for name in ("flops", "bytes"):
            if name in point:
                rate = point[f"{name}_per_s"]
                assert rate > 0 and rate == pytest.approx(point[name] / point["median_s"])


def test_a_profile_survives_the_file_exactly(profile: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "one.toml"
    path.write_text(calibrations.to_text(profile), "utf-8")
    assert calibrations.read(path) == profile
    assert json.loads(json.dumps(profile, allow_nan=False)) == profile


def test_each_class_has_a_summary_that_says_how_sure_it_is(profile: dict[str, Any]) -> None:
    summary = profile["summary"]
    assert set(summary) == {
        "gemm_ceiling", "gemm", "fixed", "bandwidth", "attention", "elementwise", "norm", "loss",
        "optimizer", "embedding_backward", "two_depth", "kernel", "launch", "residual",
        "launch_decode", "few_rows", "decode_attention", "generation", "residual_decode",
    }  # fmt: skip
    for rows in summary.values():
        for row in rows:
            errors = {"median_relative_error", "relative_spread"} & set(row)
            assert row["n"] >= 1 and (errors or row["n"] == 2), row
    assert calibrations.ceiling(profile) > 1e8


def test_the_step_has_its_phases_and_both_depths(profile: dict[str, Any]) -> None:
    shallow, deep = _of(profile, "step")
    assert (shallow["layers"], deep["layers"]) == (2, 4)
    assert deep["parameters"] > shallow["parameters"]
    assert set(deep["phases"]) == {
        "forward_s", "loss_s", "backward_s", "optimizer_s", "zero_grad_s",
    }  # fmt: skip
    assert min(deep["phases"].values()) > 0


@pytest.mark.usefixtures("one_thread")
def test_phases_take_about_as_long_as_a_step() -> None:
    """They are of other steps than the timed ones; a busy machine may disturb some, not each try."""
    [_, deep] = microbench_step.steps(SMALL, SMALL.steps[:1])
    for _ in range(5):
        found = deep.run(Bench(DEVICE, TINY))
        ratio = sum(found["phases"].values()) / found["median_s"]
        if 0.2 < ratio < 5:
            return
    pytest.fail(f"phases over step: {ratio}")


def test_a_phase_lasts_until_the_next_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = dict(zip(PHASES, (0.25, 0.5, 1.0, 2.0, 4.0), strict=True))
    now = [0.0]

    def run(mark: Callable[[str], None]) -> None:
        for name in PHASES:
            mark(name)
            now[0] += taken[name]

    monkeypatch.setattr(microbench_step, "cpu_clock", lambda: lambda: now[0])
    step: Any = SimpleNamespace(device=DEVICE, run=run)
    found = microbench_step.phase_times(step)
    assert found == {f"{name}_s": seconds for name, seconds in taken.items()}


def test_progress_counts_to_the_end(
    profile: dict[str, Any], told: list[tuple[str, int, int]]
) -> None:
    total = len(calibrate.tasks_of(SMALL))
    assert [done for _, done, _ in told] == list(range(total + 1))
    assert {count for _, _, count in told} == {total}


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("part", PARTS)
def test_time_grows_with_the_size(part: str) -> None:
    """Each size is over 60 times the work of the one before; others' work slows all but the fastest."""
    bench, fastest = Bench(DEVICE, TINY), []
    for size in (32, 192, 768):
        product = Product(size, size, size, "fp32", part)
        first, second = product.operands(bench)
        fastest.append(bench.time(lambda call: product.run(first, second)).p10_s)  # noqa: B023
    assert fastest[0] * 3 < fastest[1] and fastest[1] * 3 < fastest[2]


def test_products_are_those_of_a_linear_layer() -> None:
    bench = Bench(DEVICE, TINY)
    linear = {part: Product(6, 4, 5, "fp32", part) for part in PARTS}
    x, weight = (t.requires_grad_() for t in linear["forward"].operands(bench))
    out = linear["forward"].run(x, weight)
    gradient = torch.randn_like(out)
    out.backward(gradient)
    for part, expected, operands in (
        ("dgrad", x.grad, (gradient, weight)), ("wgrad", weight.grad, (gradient, x)),
    ):  # fmt: skip
        found = linear[part].run(*operands)
        torch.testing.assert_close(found, expected)
        m, n, k = linear[part].shape
        assert (m, n) == tuple(found.shape) and m * n * k == 6 * 4 * 5
        assert linear[part].flops == 2 * 6 * 4 * 5


class _Traffic(TorchDispatchMode):
    """Bytes that each operator reads and writes, tensors of half the size and above."""

    def __init__(self, least: int) -> None:
        super().__init__()
        self.least, self.kernels, self.bytes = least, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = torch.utils._pytree.tree_leaves((args, result))
        moved = [t for t in tensors if isinstance(t, torch.Tensor) and t.numel() >= self.least]
        if moved and not func.is_view:
            self.kernels += 1
            self.bytes += sum(t.numel() * t.itemsize for t in moved)
        return result


@pytest.mark.parametrize("op", microbench_memory.OPERATIONS, ids=lambda op: op.name)
def test_the_stated_passes_and_kernels_are_those_that_run(op: Any) -> None:
    rows, width = 32, 1024
    bench = Bench(DEVICE, TINY)
    call = op.make([bench.randn(rows, width, dtype=torch.bfloat16) for _ in range(op.inputs)])
    with _Traffic(rows * width // 2) as traffic:
        call()
    assert traffic.kernels == op.kernels
    assert traffic.bytes == op.passes * rows * width * 2


def test_adamw_moves_28_bytes_a_parameter(profile: dict[str, Any]) -> None:
    for point in _of(profile, "optimizer", what="adamw"):
        each = {"fp32": 28, "bf16": 14}[point["dtype"]]
        assert point["bytes"] == each * point["parameters"]
        assert point["parameters"] >= (10_000 if point["tensors"] < 8 else 512)


def test_attention_work_grows_with_the_sequence(profile: dict[str, Any]) -> None:
    long, short = (_of(profile, "attention", direction="forward", seq_len=s)[0] for s in (128, 64))
    assert long["batch"] * 128 == short["batch"] * 64
    assert long["flops"] == 2 * short["flops"] == 2 * 4 * 128 * 128 * 32
    backward = _of(profile, "attention", direction="backward", seq_len=128)
    assert {p["flops"] for p in backward} == {2.5 * long["flops"]}
    assert {p["dtype"] for p in backward} == {"bf16", "fp32"}


def test_a_cpu_is_fitted_by_what_nothing_disturbed() -> None:
    point = {"median_s": 2.0, "p10_s": 1.0, "p90_s": 3.0, "flops": 8, "flops_per_s": 4.0}
    assert calibrate.undisturbed(point, "cuda") == point
    fitted = calibrate.undisturbed(point, "cpu")
    assert (fitted["median_s"], fitted["flops_per_s"]) == (1.0, 8.0)


def test_the_residual_is_measured_over_predicted(profile: dict[str, Any]) -> None:
    [row], [two] = profile["summary"]["residual"], profile["summary"]["two_depth"]
    ratios = [seen / told for seen, told in zip(two["step_s"], row["predicted_s"], strict=True)]
    assert row["step"] == pytest.approx(sum(ratios) / 2)
    shallow, deep = row["predicted_s"]
    assert row["block"] == pytest.approx(two["block_s"] / ((deep - shallow) / 2))
    assert row["rest"] == pytest.approx(two["rest_s"] / (2 * shallow - deep))
    assert shallow < deep < 3 * shallow


def test_a_residual_that_cannot_be_had_is_listed(
    profile: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("no rates")

    monkeypatch.setattr(calibrate, "residuals", fail)
    found: dict[str, Any] = {"summary": {}, "skipped": []}
    calibrate._add_residuals(found, DEVICE)
    assert found["skipped"] == [
        {"point": "residual of two depths", "reason": "ValueError: no rates"}
    ]
    assert found["summary"] == {}


def test_a_deadline_leaves_out_the_least_valuable_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that is 50 ms on whenever it is read, which is once before each task."""
    ticks = itertools.count()
    clock = SimpleNamespace(monotonic=lambda: 0.05 * next(ticks))
    monkeypatch.setattr(calibrate, "time", clock)
    found = calibrate.run(DEVICE, small=True, deadline_s=0.6)
    tasks = calibrate.tasks_of(SMALL)
    late = [row["point"] for row in found["skipped"] if row["reason"] == "the deadline of 0.6 s"]
    each = TINY.least_s + 2 * TINY.warmup_s + calibrate._SETUP_S
    begun = [task.label for task in tasks if task.label not in late]
    assert begun == [
        task.label for tick, task in enumerate(tasks, 1) if 0.05 * tick + each + task.cost_s <= 0.6
    ]
    assert 0 < len(found["points"]) <= len(begun) < len(tasks)
    assert calibrations.to_text(found)


def test_no_time_at_all_gives_a_profile_without_figures(tmp_path: Path) -> None:
    found = calibrate.run(DEVICE, small=True, deadline_s=0.0)
    assert found["points"] == [] and found["summary"] == {}
    assert calibrations.ceiling(found) is None
    path = tmp_path / "empty.toml"
    path.write_text(calibrations.to_text(found), "utf-8")
    assert calibrations.read(path) == found


def _raises(error: BaseException) -> Task:
    def run(bench: Bench) -> dict[str, Any]:
        raise error

    return Task(f"raises {type(error).__name__}", run)


def test_what_cannot_run_is_listed_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    good = calibrate.tasks_of(SMALL)[0]
    bad = [
        _raises(torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")),
        _raises(RuntimeError("CUDA error: no kernel image\nis available " + "x" * 300)),
        _raises(NotImplementedError("no fp8 here")),
        _raises(AttributeError("torch has no _scaled_mm")),
    ]
    monkeypatch.setattr(calibrate, "tasks_of", lambda scale: [*bad, good])
    found = calibrate.run(DEVICE, small=True)
    reasons = [row["reason"] for row in found["skipped"]]
    assert reasons[0] == "out of memory" and reasons[2] == "no fp8 here"
    assert reasons[1].startswith("RuntimeError: CUDA error: no kernel image is available")
    assert len(reasons[1]) <= 160 and reasons[3].startswith("AttributeError")
    assert [point["kind"] for point in found["points"]] == ["gemm_square"]


def test_a_fit_that_fails_does_not_cost_the_points(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(points: Any) -> Any:
        raise ZeroDivisionError("no")

    tasks = calibrate.tasks_of(SMALL)[:3]
    monkeypatch.setattr(calibrate, "tasks_of", lambda scale: tasks)
    monkeypatch.setitem(calibrate.CLASSES, "gemm_ceiling", fail)
    found = calibrate.run(DEVICE, small=True)
    assert len(found["points"]) == 3 and "bandwidth" in found["summary"]
    [row] = found["skipped"]
    assert row == {"point": "summary of gemm_ceiling", "reason": "ZeroDivisionError: no"}


def test_a_device_that_broke_ends_the_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    good, *_ = calibrate.tasks_of(SMALL)

    def broken(device: torch.device) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    tasks = [good, _raises(RuntimeError("CUDA error: an illegal memory access")), good]
    monkeypatch.setattr(calibrate, "tasks_of", lambda scale: tasks)
    monkeypatch.setattr(calibrate, "synchronize", broken)
    found = calibrate.run(DEVICE, small=True)
    assert len(found["points"]) == 1
    assert found["skipped"][1]["reason"].startswith("the device failed before: ")


def test_stopping_it_restores_what_it_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    monkeypatch.setattr(calibrate, "tasks_of", lambda scale: [_raises(KeyboardInterrupt())])
    with pytest.raises(KeyboardInterrupt):
        calibrate.run(DEVICE, small=True, threads=threads + 1)
    assert torch.get_num_threads() == threads and gc.isenabled()
    assert torch.get_float32_matmul_precision() == precision


def test_a_gpu_is_measured_at_the_sizes_of_real_models() -> None:
    tasks = calibrate.tasks_of(CUDA)
    labels = [task.label for task in tasks]
    kinds = Counter(label.split()[0] for label in labels)
    assert "gemm bf16 8192x8192x8192 forward burst" in labels[:4]
    assert "gemm bf16 8192x8192x8192 forward for 5 s" in labels
    assert "gemm bf16 128256x4096x16384 wgrad" in labels
    assert "gemm bf16 64x4096x4096 forward, 64 in a CUDA graph" in labels
    assert kinds["attention"] == 2 * 2 * (5 + 3) + 4
    short = sum(task.cost_s < 10 for task in tasks) * (CUDA.protocol.least_s + 0.2)
    assert short + sum(t.cost_s for t in tasks if t.cost_s < 10) < 180  # all but what compiles
    assert len(set(labels)) == len(labels)
    assert calibrate.scale_for(torch.device("cuda"), False) is CUDA
    assert calibrate.scale_for(DEVICE, False) is CPU


def test_two_ranks_measure_collectives_together(tmp_path: Path) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(
        textwrap.dedent("""
        import json, os, sys
        import torch
        from memcalc.harness.calibration import calibrate
        from memcalc.harness.calibration.microbench_collectives import collectives
        calibrate.tasks_of = collectives
        found = calibrate.run(torch.device("cpu"), small=True, threads=1)
        with open(os.path.join(sys.argv[1], os.environ["RANK"]), "w") as file:
            json.dump(found, file)
    """)
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    done = subprocess.run(
        [*words, str(script), str(tmp_path)], capture_output=True, text=True, timeout=300,
        check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (json.loads((tmp_path / rank).read_text()) for rank in "01")
    assert first["skipped"] == second["skipped"] == [] and first["ranks"] == 2
    assert len(first["points"]) == 4 * len(SMALL.messages_bytes)
    for mine, theirs in zip(first["points"], second["points"], strict=True):
        assert mine["calls"] == theirs["calls"]
        factor = 2 if mine["what"] == "all_reduce" else 1
        assert mine["bus_bytes"] == factor * mine["message_bytes"] / 2
    assert {row["what"] for row in first["summary"]["collective"]} == {
        "all_reduce", "all_gather", "reduce_scatter", "all_to_all",
    }  # fmt: skip
