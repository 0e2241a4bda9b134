"""Which device a word means, what is said of it, and the driver's readings, on stand-ins for CUDA."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from memcalc.errors import ConfigError
from memcalc.harness import device, host, nvml, records

CPU = torch.device("cpu")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch sees two CUDA devices and works on the second."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)


@pytest.fixture
def no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_without_a_word_it_is_cuda_where_there_is_one(cuda: None) -> None:
    assert device.pick_device() == torch.device("cuda:1")


def test_without_a_word_and_without_cuda_it_is_the_cpu(no_cuda: None) -> None:
    assert device.pick_device() == CPU


@pytest.mark.parametrize(
    ("word", "found"),
    [("cuda", "cuda:1"), ("cuda:0", "cuda:0"), (" CPU ", "cpu"), ("cpu:0", "cpu")],
)
def test_a_word_means_a_device(cuda: None, word: str, found: str) -> None:
    assert device.pick_device(word) == torch.device(found)


@pytest.mark.parametrize("word", ["cuda:2", "cuda:9", "gpu", "cuda:x", "", "cpu:1", "mps"])
def test_other_words_are_refused_with_what_is_there(cuda: None, word: str) -> None:
    with pytest.raises(
        ConfigError, match=r"--device: got .*(valid|nearest): .*c(uda|pu)"
    ) as caught:
        device.pick_device(word)
    assert "\n" not in str(caught.value)


def test_cuda_without_cuda_says_why(no_cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(ConfigError, match="cuda, cuda:1 or cpu; .*built without CUDA; valid: cpu"):
        device.pick_device("gpu")  # not "nearest: cpu"
    with pytest.raises(ConfigError, match="built without CUDA; valid: cpu"):
        device.pick_device("cuda")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(host, "driver_version", lambda: None)
    with pytest.raises(ConfigError, match="built with CUDA and finds no driver"):
        device.pick_device("cuda:0")
    monkeypatch.setattr(host, "driver_version", lambda: "580.1")
    with pytest.raises(ConfigError, match="no CUDA device is visible"):
        device.pick_device("cuda")


def test_a_torch_that_warns_of_its_driver_is_heard_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import warnings

    def complaining() -> bool:
        warnings.warn("CUDA initialization: driver too old", UserWarning, stacklevel=2)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", complaining)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert device.pick_device() == CPU


def test_facts_of_a_cpu_are_plain_and_complete() -> None:
    facts = device.device_facts(CPU)
    assert facts == records.finite(facts)
    assert facts["type"] == "cpu" and facts["torch"] == torch.__version__
    assert facts["compute_capability"] is None and facts["driver_total_bytes"] is None
    assert facts["host"]["threads"] >= 1
    if Path("/proc/meminfo").exists():
        assert 0 < facts["host"]["ram_available_bytes"] <= facts["total_bytes"]


def test_facts_of_a_gpu_hold_both_totals(cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, _Nvml())
    facts = device.device_facts(torch.device("cuda:0"))
    assert facts == records.finite(facts)
    assert (facts["name"], facts["compute_capability"]) == ("NVIDIA H200", "9.0")
    assert (facts["total_bytes"], facts["driver_total_bytes"]) == (150_000, 151_000)
    assert (facts["multiprocessors"], facts["l2_bytes"]) == (132, 60_000)
    assert facts["driver"] == "580.159.03" and facts["power_limit_w"] == 700


def test_facts_of_a_gpu_without_nvml_leave_the_drivers_out(
    cuda: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install(monkeypatch, None)
    facts = device.device_facts(torch.device("cuda:0"))
    assert facts["total_bytes"] == 150_000 and facts["driver_total_bytes"] is None


class _NvmlError(Exception):
    pass


class _Nvml:
    """A stand-in for the module pynvml, with the names it has."""

    NVMLError, NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = _NvmlError, 1, 2, 0

    def __init__(self, pid: int | None = None, masks: tuple[int, ...] = (0,)) -> None:
        self.pid, self.masks, self.reads = pid, masks, 0

    def nvmlInit(self) -> None:  # noqa: N802
        pass

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return "580.159.03"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        assert uuid == "GPU-1234"
        return uuid

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:  # noqa: N802
        return SimpleNamespace(total=151_000)

    def nvmlDeviceGetPowerManagementLimit(self, handle: str) -> int:  # noqa: N802
        return 700_000

    def nvmlDeviceGetMaxClockInfo(self, handle: str, kind: int) -> int:  # noqa: N802
        raise _NvmlError("Not Supported")

    def nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> int:  # noqa: N802
        self.reads += kind == 1
        return 1_000 + self.reads if kind == 1 else 3_201

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:  # noqa: N802
        return 650_500

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:  # noqa: N802
        return 61

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: str) -> int:  # noqa: N802
        return self.masks[self.reads % len(self.masks)]

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[Any]:  # noqa: N802
        other = SimpleNamespace(pid=1, usedGpuMemory=5)
        return (
            [other]
            if self.pid is None
            else [other, SimpleNamespace(pid=self.pid, usedGpuMemory=7_000)]
        )


def _install(monkeypatch: pytest.MonkeyPatch, library: _Nvml | None) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pynvml", library)  # None: importing it fails
    properties = SimpleNamespace(
        name="NVIDIA H200", total_memory=150_000, major=9, minor=0, multi_processor_count=132,
        L2_cache_size=60_000, uuid="1234",
    )  # fmt: skip
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "get_allocator_backend", lambda: "native")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (100_000, 150_000))


def test_the_drivers_count_is_the_processs_where_nvml_knows_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _install(monkeypatch, _Nvml(pid=os.getpid()))
    memory = nvml.DriverMemory(torch.device("cuda:0"))
    assert memory.method == "nvml process"
    assert memory.read() == {"used_bytes": 7_000, "device_bytes": 50_000}


@pytest.mark.parametrize("library", [_Nvml(), None], ids=["process not listed", "no nvml"])
def test_else_it_is_the_whole_devices(
    monkeypatch: pytest.MonkeyPatch, library: _Nvml | None
) -> None:
    _install(monkeypatch, library)
    memory = nvml.DriverMemory(torch.device("cuda:0"))
    assert (memory.method, memory.base_bytes) == ("whole device", 50_000)
    assert memory.read() == {"used_bytes": 50_000, "device_bytes": 50_000}


def test_a_cpu_has_no_drivers_count() -> None:
    memory = nvml.DriverMemory(CPU)
    assert memory.method is None and memory.read() == {"used_bytes": None, "device_bytes": None}
    with nvml.Sampler(CPU) as sampler:
        pass
    assert sampler.summary() is None


def test_readings_over_time_are_summed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, _Nvml(masks=(0x4, 0x44)))
    with nvml.Sampler(torch.device("cuda:0"), period_s=0.001) as sampler:
        deadline = time.monotonic() + 5
        while len(sampler._samples) < 10 and time.monotonic() < deadline:
            time.sleep(0.005)
    found = sampler.summary()
    assert found is not None and found["samples"] >= 10
    clock = found["sm_clock_hz"]
    assert clock["min"] == 1_001_000_000 and clock["min"] < clock["median"] < clock["max"]
    assert found["memory_clock_hz"]["max"] == 3_201_000_000
    assert found["power_w"]["median"] == 650.5 and found["temperature_c"]["max"] == 61
    assert found["throttle"]["power-cap"] == 1.0
    assert 0.3 < found["throttle"]["thermal-hardware"] < 0.7


def test_what_cannot_fit_is_refused_before_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "available_bytes", lambda: 10 << 30)
    host.refuse_what_cannot_fit(9 << 30)
    with pytest.raises(host.DoesNotFitError, match="a step of 20.00 GiB .* 10.00 GiB") as caught:
        host.refuse_what_cannot_fit(20 << 30)
    assert caught.value.asked_bytes == 20 << 30 and "\n" not in str(caught.value)
    monkeypatch.setattr(host, "available_bytes", lambda: None)  # unknown: try it
    host.refuse_what_cannot_fit(1 << 60)


def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 1000 kB\nMemAvailable: 900 kB\n")
    monkeypatch.setattr(host, "_PROC", tmp_path)
    monkeypatch.setattr(host, "_CGROUP", tmp_path)
    assert (host.total_bytes(), host.available_bytes()) == (1_024_000, 921_600)
    (tmp_path / "memory.max").write_text("500000\n")
    (tmp_path / "memory.current").write_text("300000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 100000\n")
    assert (host.total_bytes(), host.available_bytes()) == (500_000, 300_000)
    (tmp_path / "memory.max").write_text("max\n")
    assert host.available_bytes() == 921_600


def test_the_drivers_version_is_read_from_its_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "_PROC", tmp_path)
    assert host.driver_version() is None
    folder = tmp_path / "driver" / "nvidia"
    folder.mkdir(parents=True)
    said = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.03  Release Build\n"
    (folder / "version").write_text(said)
    assert host.driver_version() == "580.159.03"
