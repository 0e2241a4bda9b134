"""What the fixture `between_processes` starts under torchrun: two processes, on gloo and real tensors.

Writes rank{N}.json: of each case the step's peak and allocations (bytes, aten operator, phase, place),
of that of several steps whose peak is lowest: gloo's thread may let go of a collective's tensor late.
"""

from __future__ import annotations

import json
import os
import sys
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch.distributed as dist

from memcalc.harness.ranks.rank_end import leave_process
from memcalc.harness.ranks.ranks import Ranks, init_grid
from tests.oracle.support.rank import CPU, RankTrace, run_rank_on_data
from tests.oracle.support.rank_cases import PAIRS
from tests.oracle.support.rank_draw import RankSetup

REPEATS = 3
#: gloo has no reduce-scatter: it reduces a copy of the whole input, seen where it is cut into parts.
_GLOOS_COPY = "aten.split.Tensor"


def main(out: Path) -> int:
    """The exit status."""
    dist.init_process_group("gloo")
    rank = int(os.environ["RANK"])
    found = {name: _found(case, rank) for name, case in PAIRS.items()}
    (out / f"rank{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    return 0


def _found(case: RankSetup, rank: int) -> dict[str, Any]:
    layout = case.layout
    ranks = Ranks(layout, layout.place(rank), CPU, "gloo", init_grid(layout, CPU))
    traces = run_rank_on_data(case.plan(), ranks, rank, REPEATS)
    return min((seen(trace) for trace in traces), key=lambda seen: seen["peak"])


def seen(trace: RankTrace) -> dict[str, Any]:
    """Peak and allocations without gloo's copies."""
    own = {e.storage for e in trace.events if e.aten == _GLOOS_COPY}
    events = [event for event in trace.events if event.storage not in own]
    lives = accumulate((event.nbytes for event in events), initial=trace.live_before)
    allocations = [[e.nbytes, e.aten, e.phase, e.where] for e in events if e.nbytes > 0]
    return {"peak": max(lives), "allocations": allocations}


if __name__ == "__main__":
    leave_process(main(Path(sys.argv[1])))
