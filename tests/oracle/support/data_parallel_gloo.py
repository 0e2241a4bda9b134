"""What test_fsdp2_gloo.py runs under torchrun: FSDP2, DDP and split states on gloo and real tensors.

Writes rank{N}.json: of each case the step's peak and the bytes of the states, of that of several steps
whose peak is lowest.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist

from memcalc.harness.ranks.rank_end import leave_process
from memcalc.harness.ranks.ranks import Ranks, init_grid
from tests.oracle.support.rank import CPU, run_rank_on_data
from tests.oracle.support.rank_cases import PAIRS
from tests.oracle.support.rank_draw import RankSetup
from tests.oracle.support.rank_gloo import REPEATS, seen
from tests.oracle.support.zero_redundancy import split_states

SPLIT = "split states"
#: Each as the engine prices it and as two processes run it.
CASES: dict[str, RankSetup] = {
    "fsdp-accum-sac": PAIRS["fsdp-accum-sac"],
    "ddp": replace(PAIRS["ddp"], setup=replace(PAIRS["ddp"].setup, recompute="full")),
    SPLIT: PAIRS["ddp"],
}


def main(out: Path) -> int:
    """The exit status."""
    dist.init_process_group("gloo")
    rank = int(os.environ["RANK"])
    found = {name: _found(name, rank) for name in CASES}
    (out / f"rank{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    return 0


def _found(name: str, rank: int) -> dict[str, Any]:
    layout = CASES[name].layout
    ranks = Ranks(layout, layout.place(rank), CPU, "gloo", init_grid(layout, CPU))
    with split_states() if name == SPLIT else nullcontext():
        traces = run_rank_on_data(CASES[name].plan(), ranks, rank, REPEATS)
    best = min(traces, key=lambda trace: seen(trace)["peak"])
    return {"peak": seen(best)["peak"], "states": best.bytes.states}


if __name__ == "__main__":
    leave_process(main(Path(sys.argv[1])))
