"""python -m tests.fuzz.run: the command line under drawn inputs, each judged by `oracle.py`.

    python -m tests.fuzz.run --inputs 100000            all targets by their shares
    python -m tests.fuzz.run --seconds 60               as many as go into a minute
    python -m tests.fuzz.run --case config:1234         one input again, with what it wrote

A seed, a target and a number name an input; with_atheris.py lets coverage decide.
Exit status: 0 nothing found, 1 something. See docs/fuzzing.md.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.fuzz import oracle
from tests.fuzz.batches import Batch, Tally, run_batches
from tests.fuzz.oracle import Case
from tests.fuzz.targets import TARGETS

#: Inputs of one process: what a run of the program keeps in memory is dropped with it.
_BATCH = 200


def drawn(target: str, seed: int, number: int) -> Case:
    """The input of this name."""
    return TARGETS[target][0](random.Random(f"{seed}/{target}/{number}"))


def main(words: list[str] | None = None) -> int:
    """Run what was asked for; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz.run", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--inputs", type=int, default=100_000, help="in all [100000]")
    parser.add_argument("--seconds", type=float, help="stop then, however many were run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", action="append", choices=list(TARGETS), help="only these")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time [1]")
    parser.add_argument("--case", help="TARGET:NUMBER of one input to run again")
    parser.add_argument("--json", action="store_true", help="figures as one JSON object")
    asked = parser.parse_args(words)
    if asked.case:
        return _again(*asked.case.split(":"), asked.seed)
    return _all(asked)


def _again(target: str, number: str, seed: int) -> int:
    case = drawn(target, seed, int(number))
    with tempfile.TemporaryDirectory() as folder, oracle.sandbox(Path(folder)) as work:
        ended, found = oracle.run(case, work)
    print("words:", case.words)
    for name, data in case.files.items():
        print(f"{name}: {data[:3000]!r}")
    print(f"status {ended.status}, {ended.seconds:.2f} s\n{ended.out[-1500:]}{ended.err[-1500:]}")
    if ended.error is not None:
        import traceback

        traceback.print_exception(ended.error, limit=-6)
    print("found:", found)
    return 1 if found else 0


def _all(asked: argparse.Namespace) -> int:
    targets = asked.target or list(TARGETS)
    shares = {name: TARGETS[name][1] for name in targets}
    counts = {name: round(asked.inputs * s / sum(shares.values())) for name, s in shares.items()}
    batches = [
        Batch(name, asked.seed, first, min(_BATCH, counts[name] - first))
        for name in targets
        for first in range(0, counts[name], _BATCH)
    ]
    random.Random(0).shuffle(batches)  # a run cut short has some of each target
    begin = time.monotonic()
    deadline = None if asked.seconds is None else begin + asked.seconds
    root = Path(tempfile.mkdtemp(prefix="memcalc-fuzz-"))
    try:
        tally = run_batches(batches, drawn, root, asked.jobs, deadline, sum(counts.values()))
    finally:
        shutil.rmtree(root, ignore_errors=True)
    figures = _figures(tally, asked.seed, time.monotonic() - begin)
    print(json.dumps(figures, indent=2) if asked.json else _text(figures))
    return 1 if tally.finds else 0


def _figures(tally: Tally, seed: int, seconds: float) -> dict[str, Any]:
    return {
        "seed": seed, "inputs": sum(tally.inputs.values()), "elapsed_s": round(seconds, 1),
        "largest_process_mib": tally.rss_mib, "slowest_s": round(tally.slowest[0], 2),
        "slowest": tally.slowest[1],
        "targets": {
            name: {"inputs": count, "status": dict(sorted(tally.statuses[name].items()))}
            for name, count in sorted(tally.inputs.items())
        },
        "finds": [
            {"kind": find.kind, "detail": find.detail, "times": times, "first": tally.first[find]}
            for find, times in Counter(tally.finds).most_common()
        ],
    }  # fmt: skip


def _text(figures: dict[str, Any]) -> str:
    lines = [f"{'target':12} {'inputs':>8}  ended with status"]
    for name, row in figures["targets"].items():
        said = ", ".join(f"{status}: {count}" for status, count in row["status"].items())
        lines.append(f"{name:12} {row['inputs']:>8}  {said}")
    lines.append(
        f"{figures['inputs']} inputs of seed {figures['seed']} in {figures['elapsed_s']} s; slowest "
        f"{figures['slowest_s']} s ({figures['slowest']}); "
        f"largest process {figures['largest_process_mib']} MiB"
    )
    lines.append(f"{len(figures['finds'])} kinds of finds")
    for find in figures["finds"]:
        lines.append(
            f"  {find['kind']}: {find['detail']}  ({find['times']} times, --case {find['first']})"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
