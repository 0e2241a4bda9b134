"""A measured run on a real CPU, its ends, and the readings of a GPU on stand-ins for torch.cuda."""

from __future__ import annotations

import contextlib
import gc
import json
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from memcalc.engine.memory import step_memory
from memcalc.errors import ConfigError
from memcalc.harness import (
    allocator_peaks,
    failures,
    host,
    measured_run,
    nvml,
    records,
    step,
    step_clock,
)
from memcalc.harness import measure as measure_module
from memcalc.harness.local import local_kernels, local_plan
from memcalc.harness.measure import MeasureOptions, measure
from memcalc.harness.memory_summary import memory_summary
from memcalc.harness.record_head import STATUSES, planned
from memcalc.harness.step_clock import frozen_garbage
from memcalc.inputs.models import load_model
from memcalc.inputs.training import TrainingSetup
from tests.harness.models import GPT2, LLAMA, cpu_plan

#: No ceiling: a large matmul takes seconds and is tested on its own.
QUICK = MeasureOptions(device="cpu", steps=3, warmup=1, ceiling=False)


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    return measure(cpu_plan(precision="bf16-mixed"), QUICK)


def test_memory_is_the_engines_to_the_byte(record: dict[str, Any]) -> None:
    memory, said = record["memory"], step_memory(cpu_plan(precision="bf16-mixed"))
    assert record["status"] == "ok"
    assert memory["peak_requested_bytes"] == said.peak_bytes
    assert memory["saved_for_backward_bytes"] == said.saved_bytes
    assert memory["breakdown"] == said.breakdown and memory["peak_at"] == said.peak.name
    assert memory["states"]["optimizer"] == said.states.optimizer_bytes
    unknown = ("peak_allocated_bytes", "peak_reserved_bytes", "device_used_bytes", "allocator")
    assert all(memory[name] is None for name in unknown)


def test_every_step_time_is_kept(record: dict[str, Any]) -> None:
    times = record["time"]
    assert len(times["step_s"]) == 3 and len(times["warmup_s"]) == 1
    assert times["p10_s"] <= times["median_s"] <= times["p90_s"]
    assert min(times["step_s"]) > 0 and times["first_step_s"] > 0
    assert times["tokens_per_step"] == 96
    assert times["tokens_per_s"] == pytest.approx(96 / times["median_s"])


def test_the_loss_of_every_step_is_kept_and_falls(record: dict[str, Any]) -> None:
    loss = record["loss"]
    assert len(loss["values"]) == 1 + 1 + 3 and loss["all_finite"]
    assert loss["last"] < loss["first"] == pytest.approx(6.2, abs=0.3)
    assert record["loss_fell"] is True


def test_a_record_is_plain_and_gives_the_setup_again(record: dict[str, Any]) -> None:
    again = json.loads(json.dumps(records.finite(record)))
    assert again["schema"] == 1 and again["kind"] == "measure" and again["status"] in STATUSES
    assert again["options"]["steps"] == 3 and again["device"]["type"] == "cpu"
    plan = planned(again["setup"])
    assert step_memory(plan).peak_bytes == again["memory"]["peak_requested_bytes"]


def test_tokens_of_all_micro_batches_count() -> None:
    found = measure(cpu_plan(GPT2, grad_accum_steps=3), QUICK)
    assert found["time"]["tokens_per_step"] == 3 * 96


def test_a_ceiling_is_what_utilisation_is_held_against(monkeypatch: pytest.MonkeyPatch) -> None:
    ceiling = {"n": 512, "dtype": "fp32", "flops_per_s": 1e12}
    monkeypatch.setattr(measured_run, "measured_ceiling", lambda *_: ceiling)
    options = MeasureOptions(device="cpu", steps=2, warmup=1, reference_tokens_per_s=1e6)
    found = measure(cpu_plan(), options)
    used, rate = found["utilisation"], found["time"]["tokens_per_s"]
    assert used["datasheet"] is None
    mfu = used["model_flops_per_token"] * rate / 1e12
    assert used["measured_matmul"]["mfu"] == pytest.approx(mfu, rel=1e-12)
    assert used["throughput"]["ratio"] == pytest.approx(rate / 1e6)


def test_a_profile_is_added_only_when_asked_for(record: dict[str, Any]) -> None:
    assert "profile" not in record
    options = MeasureOptions(device="cpu", steps=1, warmup=0, ceiling=False, profile=True)
    assert measure(cpu_plan(), options)["profile"]["tensor_core_share"] is None  # no GPU, no share


def test_progress_names_stages_in_order_and_ends_at_the_total() -> None:
    heard: list[tuple[str, int, int]] = []
    measure(cpu_plan(), QUICK, lambda *said: heard.append(said))
    stages = list(dict.fromkeys(stage for stage, _, _ in heard))
    assert stages == ["build", "first step", "warm-up", "timed steps", "memory", "ceiling"]
    done = [d for _, d, _ in heard]
    assert done == sorted(done) and len({total for _, _, total in heard}) == 1


def test_a_run_that_computes_nothing_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    idle = SimpleNamespace(step=lambda: None, zero_grad=lambda set_to_none: None)
    monkeypatch.setattr(step, "make_optimizers", lambda *_: [idle])
    monkeypatch.setattr("memcalc.harness.watch.tensors._states", lambda _: iter(()))
    found = measure(cpu_plan(), QUICK)
    assert found["status"] == "ok" and found["loss_fell"] is False
    assert found["loss"]["first"] == found["loss"]["last"]


def test_without_an_optimizer_no_fall_is_expected() -> None:
    assert measure(cpu_plan(optimizer="none"), QUICK)["loss_fell"] is None


@contextlib.contextmanager
def _raising(monkeypatch: pytest.MonkeyPatch, at: int, error: BaseException) -> Iterator[None]:
    """The at-th loss of a run raises, in the middle of its forward pass."""
    decoder, count = step.Decoder.forward, [0]

    def forward(self: Any, *batch: torch.Tensor) -> torch.Tensor:
        count[0] += 1
        if count[0] == at:
            raise error
        return decoder(self, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(step.Decoder, "forward", forward)
        yield


_CUDA_OOM = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 139.80 GiB of "
    "which 1.00 GiB is free."
)
_CPU_OOM = (
    "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried "
    "to allocate 34359738368 bytes. Error code 12 (Cannot allocate memory)"
)


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (torch.cuda.OutOfMemoryError(_CUDA_OOM), 5 << 29),
        (RuntimeError(_CPU_OOM), 32 << 30),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), None),
        (MemoryError(), None),
    ],
    ids=["cuda", "cpu", "cublas", "python"],
)
def test_out_of_memory_is_a_result(
    monkeypatch: pytest.MonkeyPatch, error: Exception, asked: int | None
) -> None:
    with _raising(monkeypatch, 1, error):
        found = measure(cpu_plan(), QUICK)
    assert found["status"] == "oom" and found["error"]["asked_bytes"] == asked
    assert (found["error"]["stage"], found["error"]["phase"]) == ("first step", "forward")
    records.finite(found)


def test_out_of_memory_in_the_second_step_keeps_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    with _raising(monkeypatch, 2, torch.cuda.OutOfMemoryError(_CUDA_OOM)):
        found = measure(cpu_plan(), QUICK)
    assert (found["error"]["stage"], found["error"]["phase"]) == ("warm-up", "forward")
    assert found["time"]["first_step_s"] > 0 and len(found["loss"]["values"]) == 1


def test_an_interruption_keeps_the_steps_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    with _raising(monkeypatch, 5, KeyboardInterrupt()):  # first, warm-up, two timed, then it comes
        found = measure(cpu_plan(), QUICK)
    assert found["status"] == "interrupted" and found["error"]["stage"] == "timed steps"
    assert len(found["time"]["step_s"]) == 2 and found["loss_fell"] is True


def test_a_bug_inside_is_a_record_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with _raising(monkeypatch, 3, ValueError("two\nlines \x1b[31m")):
        found = measure(cpu_plan(), QUICK)
    assert found["status"] == "failed" and found["error"]["message"] == "two lines ?[31m"
    assert found["error"]["where"].startswith("step.py:") and capsys.readouterr().err == ""
    with _raising(monkeypatch, 3, ValueError("seen")):
        measure(cpu_plan(), MeasureOptions(device="cpu", steps=2, ceiling=False, debug=True))
    assert "ValueError: seen" in capsys.readouterr().err


def test_what_cannot_fit_in_host_memory_is_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "available_bytes", lambda: 1 << 20)
    found = measure(cpu_plan(), QUICK)
    assert found["status"] == "refused" and found["memory"] == {}
    assert found["error"]["asked_bytes"] == step_memory(cpu_plan()).peak_bytes
    assert found["error"]["available_bytes"] == 1 << 20


def test_a_setup_that_cannot_run_is_bad_input_not_a_record() -> None:
    with pytest.raises(ConfigError, match="optimizer: got 'lion'"):
        measure(cpu_plan(optimizer="lion"), QUICK)


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"warmup": -1}, {"threads": 0}, {"reference_tokens_per_s": -1.0}]
)
def test_options_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="rule"):
        MeasureOptions(**wrong)


def test_settings_are_as_before_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    gc.unfreeze()  # what was frozen before stays so, see below
    enabled = gc.isenabled()
    inside: list[int] = []
    monkeypatch.setattr(
        measured_run.MeasuredRun, "_memory", lambda _: inside.append(torch.get_num_threads())
    )
    measure(cpu_plan(), MeasureOptions(device="cpu", steps=1, threads=1, ceiling=False))
    with _raising(monkeypatch, 3, KeyboardInterrupt()):
        measure(cpu_plan(), QUICK)
    assert inside == [1] and torch.get_num_threads() == threads
    assert torch.get_float32_matmul_precision() == precision
    assert (gc.get_freeze_count(), gc.isenabled()) == (0, enabled)
    gc.freeze()
    frozen = gc.get_freeze_count()
    with frozen_garbage():
        assert not gc.isenabled()
    assert gc.get_freeze_count() >= frozen > 0 and gc.isenabled() == enabled


def test_a_cpus_plan_describes_a_cpus_kernels() -> None:
    config, setup = load_model("llama-3.2-1b"), TrainingSetup(seq_len=64)
    assert local_kernels(config, setup, {}, "cuda") == {}
    assert local_kernels(config, setup, {}, "cpu") == {"device": "cpu", "norm": "decomposed"}
    assert local_kernels(config, setup, {"norm": "hand"}, "cpu")["norm"] == "hand"
    assert local_kernels(load_model("gpt2"), setup, {}, "cpu") == {"device": "cpu"}


@pytest.mark.parametrize(
    ("setup", "kernels", "said"),
    [
        ({"attention": "cudnn"}, {}, "attention: got 'cudnn', a CUDA kernel; valid on a CPU"),
        ({"attention": "efficient"}, {}, "attention: got 'efficient'"),
        ({}, {"device": "cuda"}, "kernels.device: got 'cuda' on cpu"),
    ],
)
def test_kernels_a_cpu_lacks_are_refused(
    setup: dict[str, Any], kernels: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        local_plan(LLAMA, TrainingSetup(seq_len=64, **setup), kernels, "cpu")


def test_alibi_runs_eagerly_on_a_cpu_and_says_so() -> None:
    plan = local_plan(load_model("bloom-560m"), TrainingSetup(seq_len=64), {}, "cpu")
    assert plan.kernels.attention == "eager" and "eager" in plan.notes[-1]


# A GPU's readings, on stand-ins: what the code makes of counters, not what a GPU says.


class _Counters:
    """Stand-in counters of torch's allocator: each read is one KiB more, a reset starts a peak."""

    def __init__(self) -> None:
        self.now, self.top, self.resets = 1024, 1024, 0

    def work(self, nbytes: int) -> None:
        self.top = max(self.top, self.now + nbytes)

    def reset(self, _: Any = None) -> None:
        self.top, self.resets = self.now, self.resets + 1

    def stats(self, _: Any = None) -> dict[str, int]:
        found = {}
        for factor, name in enumerate(allocator_peaks.KINDS.values(), 1):
            found |= {f"{name}.current": self.now * factor, f"{name}.peak": self.top * factor}
        return {**found, "num_alloc_retries": 3}


@pytest.fixture
def counters(monkeypatch: pytest.MonkeyPatch) -> _Counters:
    made = _Counters()
    monkeypatch.setattr(torch.cuda, "memory_stats", made.stats)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", made.reset)
    return made


def test_each_phase_has_its_own_peak_and_a_repeated_one_its_highest(counters: _Counters) -> None:
    peaks = allocator_peaks.PhasePeaks(torch.device("cuda:0"))
    for name, nbytes in (("forward", 10), ("backward", 50), ("forward", 30), ("backward", 20)):
        peaks.enter(name)
        counters.work(nbytes)
    found = peaks.done()
    assert found is not None
    assert found["phases"]["forward"]["requested_bytes"] == 1024 + 30
    assert found["phases"]["backward"]["requested_bytes"] == 1024 + 50
    assert found["peak"]["requested_bytes"] == 1024 + 50
    assert found["peak"]["reserved_bytes"] == 4 * (1024 + 50)


def test_a_cpu_has_no_counters() -> None:
    cpu = torch.device("cpu")
    peaks = allocator_peaks.PhasePeaks(cpu)
    peaks.enter("forward")
    assert peaks.done() is None and allocator_peaks.current(cpu) is None


def test_a_whole_run_reads_a_gpu_where_it_should(
    counters: _Counters, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stages of a GPU run, rehearsed on a CPU's tensors with stand-ins for torch.cuda."""
    gpu = SimpleNamespace(type="cuda", index=0)
    _rehearse(monkeypatch, counters)
    record: dict[str, Any] = {"device": {"name": "NVIDIA H200", "total_bytes": 150_142_189_568}}
    options = MeasureOptions(steps=3, warmup=2, ceiling=False).resolved(gpu)  # type: ignore[arg-type]
    plan = cpu_plan(precision="bf16-mixed")
    run = measured_run.MeasuredRun(plan, options, gpu, record, None)  # type: ignore[arg-type]
    run.all()
    memory, stages = record["memory"], record["memory"]["allocator"]
    assert record["time"]["method"] == "cuda events" and len(record["time"]["step_s"]) == 3
    assert set(stages) >= {"before", "built", "first_step", "warm_up", "timed", "step",
                           "tracked_step", "retries"}  # fmt: skip
    assert set(stages["step"]["phases"]) == set(memory["phases"])
    assert memory["peak_allocated_bytes"] == 2 * stages["step"]["peak"]["requested_bytes"]
    assert memory["peak_requested_bytes"] == step_memory(plan).peak_bytes
    assert memory["unseen_bytes"]["forward"] == 1024 + 7 - memory["phases"]["forward"]
    assert memory["device_used_bytes"] == 9_000 and memory["context_bytes"] == 9_000 - 4 * 1024
    assert record["utilisation"]["datasheet"]["source"] == "h200-141gb"


def _rehearse(monkeypatch: pytest.MonkeyPatch, counters: _Counters) -> None:
    monkeypatch.setattr(nvml, "open_board", lambda _: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1_000, 10_000))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "Event", _Event)
    built = measured_run.TrainingStep

    def on_cpu(plan: Any, _: Any, seed: int) -> Any:
        made = built(plan, "cpu", seed)
        run = made.run

        def counted(on_phase: Callable[[str], None] | None = None, keep_loss: bool = False) -> Any:
            def enter(name: str) -> None:
                if on_phase is not None:
                    on_phase(name)
                counters.work(7 if name == "forward" else 70)

            return run(enter, keep_loss)

        made.run = counted  # type: ignore[method-assign]
        return made

    monkeypatch.setattr(measured_run, "TrainingStep", on_cpu)
    zeros = torch.zeros
    monkeypatch.setattr(
        step_clock.torch, "zeros", lambda n, dtype=None, pin_memory=False: zeros(n, dtype=dtype)
    )


class _Event:
    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, later: _Event) -> float:
        return (later.at - self.at) * 1000


def test_the_summary_takes_reserved_and_used_from_before_the_cache_was_emptied() -> None:
    reading = dict.fromkeys(allocator_peaks.KINDS, 100)
    allocator = {
        "first_step": {"peak": {**reading, "reserved_bytes": 900}},
        "warm_up": {**reading, "reserved_bytes": 500},
        "timed": {**reading, "reserved_bytes": 300, "allocated_bytes": 120},
        "step": {"peak": {**reading, "active_bytes": 130}, "phases": {}},
    }
    driver = {
        "method": "nvml process", "base_bytes": 0, "reserved_then_bytes": 480,
        "built": {"used_bytes": 200}, "warmed_up": {"used_bytes": 700}, "timed": {"used_bytes": 600},
    }  # fmt: skip
    found = memory_summary(allocator, driver, None, None)
    assert found["peak_reserved_bytes"] == 500 and found["peak_allocated_bytes"] == 120
    assert found["peak_active_bytes"] == 130 and found["device_used_bytes"] == 700
    assert found["context_bytes"] == 220 and found["unseen_bytes"] is None
    assert found["peak_requested_bytes"] is None


def test_asked_bytes_are_read_from_every_wording() -> None:
    assert failures.asked_bytes(_CUDA_OOM) == 5 << 29
    assert failures.asked_bytes(_CPU_OOM) == 32 << 30
    assert failures.asked_bytes("Tried to allocate 20.00 MiB (GPU 0; ...)") == 20 << 20
    assert failures.asked_bytes("not enough memory: you tried to allocate 64 bytes.") == 64
    assert failures.asked_bytes("CUDA error: out of memory") is None


def test_other_errors_are_not_out_of_memory() -> None:
    assert not failures.is_out_of_memory(ValueError("out of memory"))
    assert not failures.is_out_of_memory(RuntimeError("shape mismatch"))
    assert measure_module.is_out_of_memory(RuntimeError("CUDA error: out of memory"))
