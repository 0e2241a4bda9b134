"""A child process of the sweep: reads jobs as JSON lines on stdin, answers each with one line.

    python -m benchmarks.sweep.worker --device cuda:0 [--preload]

Only children touch the device, so a hanging or crashing setup costs its process, never the sweep.
--preload imports torch before the first job, without touching the device, so that a process can be
started ahead. What libraries print goes to stderr. A job is {"kind", ...}; an answer {"status", ...}.
Checked by: tests/harness/test_gpu_sweep.py.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

#: kind of job -> the function that does it, as module:name. Each takes (job, device).
HANDLERS = {
    "facts": "benchmarks.sweep.jobs:facts",
    "question": "benchmarks.sweep.jobs:question",
    "measure": "benchmarks.sweep.jobs:measure_setup",
    "timing": "benchmarks.sweep.jobs:time_setup",
    "decode": "benchmarks.sweep.jobs:decode_setup",
    "calibrate": "benchmarks.sweep.jobs:calibrate_device",
    "mfu": "benchmarks.harness_mfu:run_job",
    "residual": "benchmarks.harness_mfu:run_residual",
    "echo": "benchmarks.sweep.worker:echo",
}
Handler = Callable[[dict[str, Any], Any], dict[str, Any]]


def echo(job: dict[str, Any], device: Any) -> dict[str, Any]:
    """What tests of the protocol ask for: the job back, after `sleep_s`, or a failure."""
    time.sleep(job.get("sleep_s", 0.0))
    if job.get("exit") is not None:
        os._exit(job["exit"])
    if job.get("fail"):
        raise RuntimeError(job["fail"])
    return {"status": "ok", "job": job, "device": str(device)}


def handler(kind: str) -> Handler:
    """The function of a kind of job, its module imported now."""
    module, _, name = HANDLERS[kind].partition(":")
    found: Handler = getattr(importlib.import_module(module), name)
    return found


def answer(job: dict[str, Any], device: Any) -> dict[str, Any]:
    """Do one job; whatever it raises becomes an answer."""
    start = time.perf_counter()
    try:
        found = handler(job["kind"])(job, device)
    except Exception as error:
        sys.stderr.write(traceback.format_exc())
        found = {"status": "failed", "error": " ".join(str(error).split())[:500],
                 "error_type": type(error).__name__}  # fmt: skip
    return {**found, "spent_s": time.perf_counter() - start}


def main(words: list[str]) -> None:
    """Serve jobs until stdin ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # prints of libraries must not mix with replies
    where = words[words.index("--device") + 1] if "--device" in words else None
    device = None
    if "--preload" in words:
        importlib.import_module("benchmarks.sweep.jobs")
    for line in sys.stdin:
        job = json.loads(line)
        if device is None and job["kind"] != "echo":
            from memcalc.harness.device import pick_device

            device = pick_device(where)
        reply = answer(job, device if device is not None else where)
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
