"""Profile a training step with torch.profiler and read its shares off the trace.

A run of its own, apart from timed steps: the profiler slows the CPU side, so its span is not a step
time. Two steps are recorded after a warm-up; the device is synchronized at each step's end, so a
step's kernels lie inside its mark. What the shares mean: memcalc/harness/watch/kernel_trace.py.
Checked by: harness/test_kernel_trace.py (on the CPU, where shares are None).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from memcalc.harness.watch.kernel_trace import shares_of

STEPS = 2
#: Kineto tells stderr of each recording unless its threshold, read at the first, is above all levels.
_SILENT = ("KINETO_LOG_LEVEL", "99")


def profile_step(
    step: Callable[[], object], device: torch.device, out: Path | None = None, steps: int = STEPS
) -> dict[str, Any]:
    """Shares, seconds and longest kernels of `steps` calls of `step`, after two unrecorded ones.

    out: where the Chrome trace goes (.json or .json.gz); None: nowhere. Shapes and stacks are not
    recorded. Of a device without CUDA every share is None.
    """
    os.environ.setdefault(*_SILENT)
    on_cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_cuda else [])
    step()
    with tempfile.TemporaryDirectory() as folder:
        target = out or Path(folder) / "trace.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        plan = schedule(wait=0, warmup=1, active=steps, repeat=1)
        with profile(activities=activities, schedule=plan, record_shapes=False) as profiler:
            for _ in range(steps + 1):
                step()
                if on_cuda:
                    torch.cuda.synchronize(device)
                profiler.step()
        profiler.export_chrome_trace(str(target))
        found = shares_of(target)
    return {**found, "trace": None if out is None else out.name}
