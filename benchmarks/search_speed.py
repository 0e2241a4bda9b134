"""How fast a search prices its spaces: valid setups a second of one core, from the call to the ranked list.

    python -m benchmarks.search_speed              print
    python -m benchmarks.search_speed --write      and append one JSON line a space to search_speed.jsonl
    python -m benchmarks.search_speed --points N   hold N setups drawn of each space against `estimate`

Each space is searched in a process of its own, with nothing cached. priced_s: every setup's memory and
time, the fastest kept in order; elapsed_s: with those shown priced again, caches replayed. Times are of the
process (a busy machine delays only the wall clock), the rate is of priced_s. load: processes that wanted a
core in the last minute, divided by the cores: above 1 the figures are those of a shared core.
"""

from __future__ import annotations

import json
import os
import platform
import random
import resource
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from memcalc import __version__, estimate
from memcalc.cli.app import parse_arguments
from memcalc.cli.search import prepared
from memcalc.cli.variant_cases import Maker
from memcalc.planning.search.collect import Collector, Kept
from memcalc.planning.search.search import search, spaces_of

HERE = Path(__file__).parent
#: Setups drawn of each block of arrays.
_OF_A_BLOCK = 4
SPACES = {
    "gpt-3-175b on 4,096": "gpt-3-175b --cluster dgx-h100 --gpus 4096 --global-batch 1536 --seq 2k",
    "deepseek-v3 on 2,048": "deepseek-v3 --gpu h800 --gpus 2048 --global-batch 15360 --seq 4k",
    "llama-3.1-405b on 16,384": (
        "llama-3.1-405b --cluster dgx-h100 --gpus 16384 --global-batch 2048 --seq 8k"
    ),
}


def one(name: str) -> dict[str, Any]:
    """The figures of one space, searched here."""
    wishes, base, _ = prepared(parse_arguments("search", SPACES[name].split()))
    maker, spent = Maker(), time.process_time()
    begun, priced = time.perf_counter(), [0.0]

    def case_of(options: Any) -> Any:
        priced[0] = (
            priced[0] or time.process_time() - spent
        )  # the first is asked for after all are priced
        return maker.case({}, {**base, **options})

    found = search(wishes, case_of)
    elapsed, wall = time.process_time() - spent, time.perf_counter() - begun
    return {
        "space": name, "valid": found["valid"], "may_fit": found["may_fit"],
        "priced_s": priced[0], "elapsed_s": elapsed, "wall_s": wall,
        "valid_per_s": found["valid"] / priced[0],
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "best": found["best"][0]["command"] if found["best"] else None,
        "load": os.getloadavg()[0] / (os.cpu_count() or 1),
    }  # fmt: skip


class Sampler(Collector):
    """Keeps a few setups of every block, at random."""

    def __init__(self) -> None:
        super().__init__(1, 1e12)
        self.choose, self.drawn = random.Random(1), list[Kept]()

    def add(self, arrays: tuple[Any, Any, Any], valid: int, what: Any) -> None:
        import numpy as np

        step = arrays[0]
        there = np.flatnonzero(np.isfinite(step))
        for _ in range(_OF_A_BLOCK):
            place = int(there[self.choose.randrange(len(there))])
            at = tuple(int(part) for part in np.unravel_index(place, step.shape))
            self.drawn.append(Kept(*(float(part[at]) for part in arrays), (what, at)))
        self.valid += valid


def points(name: str, count: int) -> dict[str, Any]:
    """So many setups of a space against the scalar estimate: bytes that differ, worst of seconds."""
    wishes, base, _ = prepared(parse_arguments("search", SPACES[name].split()))
    drawn, maker = Sampler(), Maker()
    for space in spaces_of(wishes):
        space.run(drawn, None)
    drawn.choose.shuffle(drawn.drawn)
    bytes_off, worst = 0, 0.0
    for kept in drawn.drawn[:count]:
        options = kept.what[0][0].options(kept)
        case = maker.case({}, {**base, **options})
        result = estimate(
            case.config, case.setup, parallel=case.parallel, gpu=case.device, allocator=False
        )
        bytes_off += result.memory.peak_allocated_bytes != kept.allocated
        worst = max(worst, abs(kept.step_s / result.time.step_s - 1))
    tried = min(count, len(drawn.drawn))
    return {"space": name, "points": tried, "bytes_differ": bytes_off, "worst_seconds": worst}


def main(words: list[str]) -> None:
    """Print each space's figures; append them where asked."""
    if words[:1] == ["--one"]:
        print(json.dumps(one(words[1])))
        return
    if "--points" in words:
        count = int(words[words.index("--points") + 1])
        for name in SPACES:
            print(json.dumps(points(name, count)), flush=True)
        return
    for name in SPACES:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "benchmarks.search_speed", "--one", name]
        done = subprocess.run(command, capture_output=True, check=True, env=environment)
        line = {
            "schema": 1, "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "memcalc": __version__, "python": platform.python_version(),
            "machine": platform.machine(), **json.loads(done.stdout),
        }  # fmt: skip
        rate, peak = line["valid_per_s"], line["peak_bytes"] / 2**30
        print(
            f"{name}: {line['valid']:,} valid in {line['priced_s']:.2f} s, {rate:,.0f} a second; "
            f"with what is shown {line['elapsed_s']:.2f} s; {peak:.2f} GiB; load {line['load']:.1f}",
            flush=True,
        )
        if "--write" in words:
            with (HERE / "search_speed.jsonl").open("a", encoding="utf-8") as out:
                out.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
