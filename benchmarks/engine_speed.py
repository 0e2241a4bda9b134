"""How fast the engine answers: start-up of the command, one library call, a cold structure.

    python -m benchmarks.engine_speed            print
    python -m benchmarks.engine_speed --write    and append one JSON line to engine_speed.jsonl
    python -m benchmarks.engine_speed --search   how fast `search` prices its spaces (search_speed.py)

Start-up is measured against an empty one-command typer program in the same environment, the two
alternating, ten processes each; medians and all samples are kept. Times are in seconds.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from memcalc import TrainingSetup, __version__, estimate
from memcalc.engine import structure
from memcalc.engine.make_plan import make_plan
from memcalc.inputs.models import load_model
from memcalc.inputs.stacks import load_stack
from memcalc.inputs.training import resolve

HERE = Path(__file__).parent
MODEL, GPU = "llama-3.2-1b", "h100-80gb"
PROCESSES, CALLS = 10, 20
EMPTY = "import typer\napp = typer.Typer()\n@app.command()\ndef run() -> None: ...\napp()\n"
COLD = {
    "llama-3.2-1b": {},
    "llama-3.2-1b, full recompute": {"recompute": "full"},
    "llama-3.2-1b, sac, chunked loss": {"recompute": "sac", "loss": "chunked"},
    "gpt2": {},
    "mixtral-8x7b": {},
    "deepseek-v3": {},
    "gemma-3-27b, eager": {"attention": "eager"},
}


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def start_up() -> dict[str, Any]:
    """Whole processes: the command, and the empty program beside it."""
    script = Path(sys.executable).with_name("memcalc")
    program = [str(script)] if script.exists() else [sys.executable, "-m", "memcalc"]
    command = [*program, "estimate", MODEL, "--gpu", GPU, "--json"]
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder) / "empty.py"
        empty.write_text(EMPTY, "utf-8")
        programs = {"estimate": command, "empty_typer": [sys.executable, str(empty)]}
        samples: dict[str, list[float]] = {name: [] for name in programs}
        for turn in range(PROCESSES + 1):
            for name, words in programs.items():
                taken = seconds(lambda words=words: run_quietly(words))
                if turn:  # the first of each fills the file cache
                    samples[name].append(taken)
    medians = {name: statistics.median(taken) for name, taken in samples.items()}
    return {
        **{f"{name}_median_s": value for name, value in medians.items()},
        "ratio": medians["estimate"] / medians["empty_typer"],
        "difference_s": medians["estimate"] - medians["empty_typer"],
        "samples_s": samples,
    }


def run_quietly(words: list[str]) -> None:
    """A process that must end with 0 (fits) or 3 (does not)."""
    done = subprocess.run(words, capture_output=True, check=False, cwd=HERE.parent)
    assert done.returncode in (0, 3), done.stderr.decode()


def library_calls() -> dict[str, float]:
    """Medians of warm calls of `estimate`, without and with the allocator's simulation."""
    setup = TrainingSetup(seq_len=2048)
    medians = {}
    for name, allocator in (("estimate_s", False), ("estimate_with_allocator_s", True)):
        estimate(MODEL, setup, gpu=GPU, allocator=allocator)
        taken = [
            seconds(lambda a=allocator: estimate(MODEL, setup, gpu=GPU, allocator=a))
            for _ in range(CALLS)
        ]
        medians[name] = statistics.median(taken)
    return medians


def cold_structures() -> dict[str, float]:
    """Tracing a structure that is in no cache."""
    stack = load_stack("torch")
    times = {}
    for name, options in COLD.items():
        model = load_model(name.partition(",")[0])
        plan = make_plan(resolve(TrainingSetup(**options), model), stack)
        taken = []
        for _ in range(5):
            structure._CACHE.clear()
            taken.append(seconds(lambda plan=plan: plan.structure(False)))
        times[name] = statistics.median(taken)
    return times


def record() -> dict[str, Any]:
    """One line of the record: when, on what, and all times."""
    return {
        "schema": 1,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "memcalc": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "start_up": start_up(),
        "library": library_calls(),
        "cold_structure_s": cold_structures(),
    }


def main(words: list[str]) -> None:
    """Print the record; append it where asked."""
    if "--search" in words:
        from benchmarks.search_speed import main as search_main

        search_main([word for word in words if word != "--search"])
        return
    line = record()
    up = line["start_up"]
    print(f"start-up: estimate {up['estimate_median_s'] * 1e3:.0f} ms, ", end="")
    print(f"empty typer {up['empty_typer_median_s'] * 1e3:.0f} ms, ", end="")
    print(f"difference {up['difference_s'] * 1e3:.0f} ms")
    for name, value in {**line["library"], **line["cold_structure_s"]}.items():
        print(f"{name}: {value * 1e3:.2f} ms")
    if "--write" in words:
        with (HERE / "engine_speed.jsonl").open("a", encoding="utf-8") as out:
            out.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
