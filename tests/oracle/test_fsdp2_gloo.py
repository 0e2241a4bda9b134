"""Two real processes on gloo: the step's peak and states of FSDP2, DDP and split optimizer states."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from memcalc.engine.memory import step_memory
from tests.oracle.support import data_parallel_gloo
from tests.oracle.support.data_parallel import engine_plan
from tests.oracle.support.data_parallel_gloo import CASES, SPLIT

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank saw of every case."""
    out = tmp_path_factory.mktemp("gloo")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*start, "--master-port", port, data_parallel_gloo.__file__, str(out)],
        cwd=ROOT, capture_output=True, text=True, timeout=500,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_peak_where_the_engine_says(found: list[dict[str, Any]], name: str) -> None:
    """The rank that takes more is the engine's; every row count here is even, so FSDP2's are equal."""
    plan = engine_plan(CASES[name], **({"zero": 1} if name == SPLIT else {}))
    ours = step_memory(plan)
    peaks = [rank[name]["peak"] for rank in found]
    assert max(peaks) == ours.peak_bytes
    largest = found[peaks.index(max(peaks))][name]["states"]
    assert largest["parameters"] == ours.states.parameter_bytes
    assert largest["gradients"] == ours.states.gradient_bytes
    assert largest["optimizer"] == ours.states.optimizer_bytes
    assert name == SPLIT or peaks[0] == peaks[1]
