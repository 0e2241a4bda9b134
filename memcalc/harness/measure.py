"""measure: run real training steps of a plan and say what they took, as one record.

The order of a run is in memcalc/harness/measured_run.py. Whatever happens, a record comes back: a run
that was out of memory, interrupted or broken keeps what it had measured until then, and its status
says how it ended. Only a setup that cannot be stated or run at all raises ConfigError.
Checked by: harness/test_measure.py, cli/test_measure.py.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from memcalc.engine.plan import Plan
from memcalc.errors import ConfigError
from memcalc.harness import allocator_peaks, host, malloc
from memcalc.harness.device import device_facts, empty_cache, pick_device, synchronize
from memcalc.harness.failures import described, is_out_of_memory
from memcalc.harness.measured_run import MeasuredRun, Progress
from memcalc.harness.record_head import new_record

_STEPS = {"cuda": (20, 10), "cpu": (5, 2)}  # timed, warm-up


@dataclass(frozen=True, kw_only=True)
class MeasureOptions:
    """How to measure. Raises ConfigError when a number is out of range.

    device: "cuda", "cuda:1", "cpu", or None for CUDA where there is one. steps, warmup: None for 20
    and 10 on CUDA, 5 and 2 on a CPU; the first step comes before them. threads: of the CPU.
    reference_tokens_per_s: to hold the throughput against. profile: a profiled step more. tracked: a
    step under the storage tracker more. ceiling: measure a large matmul. debug: print tracebacks.
    """

    device: str | None = None
    steps: int | None = None
    warmup: int | None = None
    threads: int | None = None
    reference_tokens_per_s: float | None = None
    profile: bool = False
    seed: int = 0
    tracked: bool = True
    ceiling: bool = True
    debug: bool = False

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("warmup", 0), ("threads", 1)):
            value = getattr(self, name)
            if value is not None and not least <= value <= 1_000_000:
                raise ConfigError(f"{name}: got {value}; rule: {least} to 1,000,000")
        if self.reference_tokens_per_s is not None and not self.reference_tokens_per_s > 0:
            raise ConfigError(f"reference: got {self.reference_tokens_per_s}; rule: above 0")

    def resolved(self, device: torch.device) -> MeasureOptions:
        """The same with steps, warm-up and device filled in."""
        from dataclasses import replace

        steps, warmup = _STEPS[device.type]
        return replace(
            self,
            device=str(device),
            steps=steps if self.steps is None else self.steps,
            warmup=warmup if self.warmup is None else self.warmup,
        )


def measure(
    plan: Plan,
    options: MeasureOptions,
    progress: Progress | None = None,
    kind: Callable[..., MeasuredRun] = MeasuredRun,
) -> dict[str, Any]:
    """The record of one run; its "status" is one of record_head.STATUSES.

    progress: called with (stage, steps done, steps in all) now and then. kind: what runs the stages.
    Raises ConfigError for a device that is not there and a plan the harness cannot run. Ctrl-C ends
    the run, not the caller.
    """
    device = pick_device(options.device)
    options = options.resolved(device)
    with settings(plan, options, device):
        record = new_record("measure", plan)
        record |= {"options": asdict(options), "device": device_facts(device)}
        run = kind(plan, options, device, record, progress)
        try:
            if device.type == "cpu":
                host.refuse_what_cannot_fit(run.host_bytes())
            run.all()
            record["status"] = "ok"
        except ConfigError:
            raise
        except host.DoesNotFitError as error:
            record["status"] = "refused"
            record["error"] = {
                **described(error, "before", None),
                "asked_bytes": error.asked_bytes,
                "available_bytes": error.available_bytes,
            }
        except KeyboardInterrupt as error:
            record["status"] = "interrupted"
            _keep(run, record, error)
        except Exception as error:
            record["status"] = "oom" if is_out_of_memory(error) else "failed"
            if options.debug:
                import traceback

                traceback.print_exception(error, file=sys.stderr)
            _keep(run, record, error)
        run.release()
    return record


def _keep(run: MeasuredRun, record: dict[str, Any], error: BaseException) -> None:
    """Keep what a run had until an exception; a device that is gone cannot be read any more."""
    record["error"] = described(error, run.stage, run.phase)
    with contextlib.suppress(Exception):
        run.salvage()


@contextlib.contextmanager
def settings(plan: Plan, options: MeasureOptions, device: torch.device) -> Iterator[None]:
    """Threads and matmul precision of a run, on a device proven clean; all as before afterwards."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    tf32 = plan.resolved.setup.precision == "tf32" and device.type == "cuda"
    with contextlib.ExitStack() as stack:
        if device.type == "cuda":
            stack.enter_context(torch.cuda.device(device))
        stack.enter_context(malloc.kept(device.type == "cpu"))
        try:
            if options.threads is not None:
                torch.set_num_threads(options.threads)
            torch.set_float32_matmul_precision("high" if tf32 else "highest")
            clean(device)
            yield
        finally:
            torch.set_num_threads(threads)
            torch.set_float32_matmul_precision(precision)
            with contextlib.suppress(Exception):  # a device that failed stays as it is
                clean(device)


def clean(device: torch.device) -> None:
    """Drop what earlier runs left: garbage, cuBLAS' workspaces, the allocator's cache, its peaks."""
    gc.collect()
    if device.type == "cuda":
        synchronize(device)
        clear = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)
        if clear is not None:
            clear()
        empty_cache(device)
        allocator_peaks.reset(device)
