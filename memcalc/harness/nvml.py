"""What the NVIDIA driver says of a GPU while it works: memory in use, clocks, power, temperature.

Read through NVML (package nvidia-ml-py) where that is installed; else the memory in use comes from
`torch.cuda.mem_get_info`, and the rest is None. `Sampler` reads along in a thread.
Nothing here waits for the device. Checked by: harness/test_device.py (against a stand-in for NVML;
not yet read on a GPU).
"""

from __future__ import annotations

import contextlib
import os
import statistics
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple

import torch

#: NVML's bits for why clocks are held back (nvml.h, nvmlClocksEventReasons), named.
_REASONS = {
    0x1: "idle", 0x2: "applications-clocks", 0x4: "power-cap", 0x8: "hardware-slowdown",
    0x10: "sync-boost", 0x20: "thermal-software", 0x40: "thermal-hardware",
    0x80: "power-brake", 0x100: "display-clocks",
}  # fmt: skip
_PERIOD_S = 0.1
_MOST_SAMPLES = 100_000


class Reading(NamedTuple):
    """One look at the board: Hz, W, degrees Celsius, and the reasons clocks are held back."""

    sm_clock_hz: int | None
    memory_clock_hz: int | None
    power_w: float | None
    temperature_c: int | None
    throttle: int | None


class Board:
    """NVML's handle of a CUDA device and what it can be asked."""

    def __init__(self, library: Any, handle: Any) -> None:
        self.library, self.handle = library, handle

    def call(self, name: str, *arguments: Any) -> Any:
        """NVML's function on this board, None where the board or the driver has no answer."""
        try:
            return getattr(self.library, name)(self.handle, *arguments)
        except (self.library.NVMLError, AttributeError, TypeError):
            return None

    def read(self) -> Reading:
        """Clocks, power, temperature and throttle reasons now."""
        sm = self.call("nvmlDeviceGetClockInfo", self.library.NVML_CLOCK_SM)
        memory = self.call("nvmlDeviceGetClockInfo", self.library.NVML_CLOCK_MEM)
        power = self.call("nvmlDeviceGetPowerUsage")
        return Reading(
            sm_clock_hz=None if sm is None else sm * 1_000_000,
            memory_clock_hz=None if memory is None else memory * 1_000_000,
            power_w=None if power is None else power / 1000,
            temperature_c=self.call("nvmlDeviceGetTemperature", self.library.NVML_TEMPERATURE_GPU),
            throttle=self._held_back(),
        )

    def _held_back(self) -> int | None:
        """The bits of why clocks are held back; the older name where the library lacks the newer."""
        bits = self.call("nvmlDeviceGetCurrentClocksEventReasons")
        if bits is None:
            bits = self.call("nvmlDeviceGetCurrentClocksThrottleReasons")
        return None if bits is None else int(bits)

    def process_bytes(self) -> int | None:
        """Bytes the driver counts to this process; None where it does not say (in containers)."""
        for process in self.call("nvmlDeviceGetComputeRunningProcesses") or ():
            if process.pid == os.getpid() and process.usedGpuMemory is not None:
                return int(process.usedGpuMemory)
        return None


def open_board(device: torch.device) -> Board | None:
    """The board of a CUDA device, found by its UUID; None without NVML or off CUDA."""
    if device.type != "cuda":
        return None
    try:
        import pynvml  # type: ignore[import-not-found, unused-ignore]

        pynvml.nvmlInit()
        uuid = str(getattr(torch.cuda.get_device_properties(device), "uuid", ""))
        if not uuid:
            return None
        named = uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
        return Board(pynvml, pynvml.nvmlDeviceGetHandleByUUID(named))
    except Exception:  # missing package, library or permission: readings are optional
        return None


def board_facts(device: torch.device) -> dict[str, Any]:
    """What NVML adds to a device's facts: total bytes, driver, power limit; {} without it."""
    board = open_board(device)
    if board is None:
        return {}
    memory = board.call("nvmlDeviceGetMemoryInfo")
    limit = board.call("nvmlDeviceGetPowerManagementLimit")
    clock = board.call("nvmlDeviceGetMaxClockInfo", board.library.NVML_CLOCK_SM)
    facts: dict[str, Any] = {
        "driver_total_bytes": None if memory is None else int(memory.total),
        "power_limit_w": None if limit is None else limit / 1000,
        "max_sm_clock_hz": None if clock is None else clock * 1_000_000,
    }
    with contextlib.suppress(Exception):
        version = board.library.nvmlSystemGetDriverVersion()
        facts["driver"] = version.decode() if isinstance(version, bytes) else str(version)
    return facts


class DriverMemory:
    """Bytes of the device in use, as the driver counts them: tensors, cache, context and all.

    Method "nvml process": what NVML counts to this process. Else "whole device": total less free of
    `mem_get_info`, every process on the device included; make this object before the first tensor,
    so that `base_bytes`, what was in use then, is the context and other processes.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._board = open_board(device)
        self.base_bytes = self.device_bytes()
        said = None if self._board is None else self._board.process_bytes()
        self.method = None if device.type != "cuda" else "nvml process" if said else "whole device"

    def device_bytes(self) -> int | None:
        """Bytes in use on the device by anybody; None off CUDA."""
        if self.device.type != "cuda":
            return None
        free, total = torch.cuda.mem_get_info(self.device)
        return int(total - free)

    def read(self) -> dict[str, int | None]:
        """{"used_bytes", "device_bytes"} now: by the method, and by anybody on the device."""
        whole = self.device_bytes()
        by_process = self._board.process_bytes() if self._board is not None else None
        return {
            "used_bytes": by_process if self.method == "nvml process" else whole,
            "device_bytes": whole,
        }


class Sampler:
    """Context: read a board ten times a second in a thread; `summary` afterwards."""

    def __init__(self, device: torch.device, period_s: float = _PERIOD_S) -> None:
        self._read: Callable[[], Reading] | None = None
        if (board := open_board(device)) is not None:
            self._read = board.read
        self._period_s = period_s
        self._stop = threading.Event()
        self._samples: list[Reading] = []
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Sampler:
        if self._read is not None:
            self._thread = threading.Thread(target=self._run, name="memcalc-readings", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5)

    def _run(self) -> None:
        assert self._read is not None
        while len(self._samples) < _MOST_SAMPLES:
            self._samples.append(self._read())
            if self._stop.wait(self._period_s):
                return

    def summary(self) -> dict[str, Any] | None:
        """{field: {"min", "median", "max"}} and the share of samples each throttle reason held."""
        samples = self._samples
        if not samples:
            return None
        found: dict[str, Any] = {"samples": len(samples)}
        for name in ("sm_clock_hz", "memory_clock_hz", "power_w", "temperature_c"):
            values = [v for sample in samples if (v := getattr(sample, name)) is not None]
            found[name] = spread(values)
        masks = [sample.throttle for sample in samples if sample.throttle is not None]
        found["throttle"] = {
            name: sum(bool(mask & bit) for mask in masks) / len(masks)
            for bit, name in _REASONS.items()
            if any(mask & bit for mask in masks)
        } if masks else None  # fmt: skip
        return found


def spread(values: list[Any]) -> dict[str, float] | None:
    """Least, median and greatest of some numbers; None of none."""
    if not values:
        return None
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}
