"""Speed of sweeps: seconds of one core for thousands of points, by what varies between them.

    python benchmarks/sweep_speed.py          print
    python benchmarks/sweep_speed.py --check  and compare every 20th row with its own estimate

Seconds are the process's own (`time.process_time`), so that other work on the machine counts less; the
second of two runs, as the first traces structures. Also shown: how many rows came from grids, how many
have scaled bytes (planning/quick.py) and, with --check, by how much those are off.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterable
from typing import Any

from memcalc import ParallelPlan, TrainingSetup
from memcalc.engine.device_side import device_of
from memcalc.inputs.models import load_model
from memcalc.planning.cases import Case, point_of
from memcalc.planning.quick import agrees, quick_rows
from memcalc.planning.rows import SIMULATED, row_of

GPU = device_of("h100-80gb")
ONE = ParallelPlan()


def case(model: str, parallel: ParallelPlan = ONE, **fields: Any) -> Case:
    """One setup on one H100, or on each of several."""
    return Case(
        {}, f"memcalc estimate {model}", model, load_model(model), TrainingSetup(**fields),
        parallel, {}, GPU,
    )  # fmt: skip


def sizes(batches: Iterable[int], lengths: Iterable[int]) -> list[dict[str, int]]:
    """Every micro-batch with every sequence length."""
    lengths = list(lengths)
    return [{"micro_batch_size": b, "seq_len": s} for b in batches for s in lengths]


def sweeps() -> dict[str, list[Case]]:
    """The sweeps timed, by name."""
    two_axes = sizes(range(1, 21), range(128, 12801, 128))
    feasible = sizes(range(1, 21), range(16, 817, 8))
    fewer = sizes(range(1, 21), range(512, 12801, 512))
    small = sizes((1, 2, 4, 8), (1024, 2048, 4096, 8192))
    return {
        "llama-3.2-1b, micro-batch 1..20 x 100 sequences": [
            case("llama-3.2-1b", **one) for one in two_axes
        ],
        "the same, all of it fits": [case("llama-3.2-1b", **one) for one in feasible],
        "micro-batch 1..20 x 25 sequences x 4 recomputations": [
            case("llama-3.2-1b", recompute=how, **one)
            for how in ("none", "sac", "sac-attention", "full")
            for one in fewer
        ],
        "llama-3.1-8b fsdp on 16, micro-batch 1..20 x 25 sequences": [
            case("llama-3.1-8b", ParallelPlan(dp=16, fsdp=True), **one) for one in fewer
        ],
        "16 sizes x 4 recomputations x 3 tp (the scalar path)": [
            case("llama-3.2-1b", ParallelPlan(tp=tp), recompute=how, **one)
            for tp in (1, 2, 4)
            for how in ("none", "sac", "sac-attention", "full")
            for one in small
        ],
    }


def seconds(cases: list[Case]) -> tuple[float, list[dict[str, Any]]]:
    """Seconds of one core for the rows of all cases, and the rows."""
    begun = time.process_time()
    rows = quick_rows(cases)
    return time.process_time() - begun, rows


def check(cases: list[Case], rows: list[dict[str, Any]]) -> str:
    """What every 20th row and its own estimate have between them."""
    wrong, ratios = 0, []
    for one, row in list(zip(cases, rows, strict=True))[::20]:
        scalar = row_of(point_of(one))
        wrong += not agrees(row, scalar)
        if row["reserved"] != SIMULATED:
            ratios.append(abs(row["peak_reserved_bytes"] / scalar["peak_reserved_bytes"] - 1))
    said = f"{wrong} of {len(rows[::20])} rows differ"
    if ratios:
        said += f"; scaled reserved bytes off by {statistics.median(ratios):.1%} (median), "
        said += f"{max(ratios):.1%} (worst of {len(ratios)})"
    return said


def main(words: list[str]) -> None:
    """Print the seconds of each sweep."""
    for name, cases in sweeps().items():
        first, _ = seconds(cases)
        again, rows = seconds(cases)
        scaled = sum(row["reserved"] != SIMULATED for row in rows)
        fits = sum(bool(row["fits"]) for row in rows)
        print(f"{name}: {len(rows)} points in {again:.2f} s (cold {first:.2f} s), ", end="")
        print(f"{again / len(rows) * 1e3:.2f} ms each; {fits} fit, {scaled} scaled")
        if "--check" in words:
            print(f"    {check(cases, rows)}")


if __name__ == "__main__":
    main(sys.argv[1:])
