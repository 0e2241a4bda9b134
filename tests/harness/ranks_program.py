"""What test_distributed.py runs under torchrun: the layouts it names, in one process group.

Writes rank{N}.json: of each case the losses of its steps, the tracked step's bytes, and MemTracker's
peak of the same step. With the word "oom" instead: a run whose second rank runs out of memory; a file
"raised" tells when.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed._tools.mem_tracker import MemTracker

from memcalc.harness.measure import MeasureOptions
from memcalc.harness.ranks import distributed
from memcalc.harness.ranks.layout import Layout, World, world
from memcalc.harness.ranks.layout_rules import check_layout
from memcalc.harness.ranks.rank_end import leave_process
from memcalc.harness.ranks.rank_records import completed, merged
from memcalc.harness.ranks.rank_step import RankStep
from memcalc.harness.ranks.ranks import Ranks, init_grid
from memcalc.harness.watch.tensors import tracked_step
from tests.harness.ranks_cases import CASES, GRIDS, STEPS, Case, plan_of_case

CPU = torch.device("cpu")
REPEATS = 5


def main(out: Path, words: Sequence[str]) -> int:
    """The exit status."""
    here = world()
    if words == ["oom"]:
        return out_of_memory(out, here)
    dist.init_process_group("gloo")
    cases = CASES if here.size == 2 else GRIDS
    found = {name: run(cases[name], here) for name in words}
    (out / f"rank{here.rank}.json").write_text(json.dumps(found))
    dist.barrier()
    return 0


def run(case: Case, here: World) -> dict[str, Any]:
    plan = plan_of_case(case)
    check_layout(case.layout, plan)
    step = RankStep(plan, ranks_of(case.layout, here))
    losses = [step.run(keep_loss=True) for _ in range(STEPS)]
    # gloo's thread may let go of a collective's tensor late, which only raises a peak: the least counts
    repeats = range(REPEATS if case.mem_tracker else 1)
    tensors = min((tracked_step(step) for _ in repeats), key=lambda found: found.peak)
    return {
        "losses": [None if loss is None else float(loss) for loss in losses],
        "host_bytes": 4 * sum(len(o.state) for o in step.optimizers),
        "mem_tracker": mem_tracker_peak(step) if case.mem_tracker else None,
        "tensors": tensors.plain(),
    }


def mem_tracker_peak(step: RankStep) -> int:
    """The most bytes torch's MemTracker sees in a step."""
    tracker, peaks = MemTracker(), []
    tracker.track_external(step.model, *step.optimizers, step.ids, *step.other_tensors())
    for _ in range(1 + REPEATS):
        with tracker:
            step.run()
        tracker.reset_mod_stats()
        peaks.append(tracker.get_tracker_snapshot("peak")[CPU]["Total"])
    return min(peaks[1:])  # in the first it learns of storages of size 0


def ranks_of(layout: Layout, here: World) -> Ranks:
    return Ranks(layout, layout.place(here.rank), CPU, "gloo", init_grid(layout, CPU))


class _OutOfMemory(distributed.RankRun):
    """Rank 1 runs out of memory in the warm-up; rank 0 waits for it in a collective."""

    raised: Path

    def _warm_up(self) -> None:
        if self.world.rank == 1:
            self.raised.touch()
            raise MemoryError("DefaultCPUAllocator: you tried to allocate 4096 bytes")
        super()._warm_up()


def out_of_memory(out: Path, here: World) -> int:
    _OutOfMemory.raised = out / "raised"
    distributed.RankRun = _OutOfMemory  # type: ignore[misc]

    def finish(posted: Any, stages: Any, first: int | None) -> int:
        result = merged(completed(posted, stages, "batch"), first)
        (out / "result.json").write_text(json.dumps(result))
        return 3

    options = MeasureOptions(device="cpu", steps=2, warmup=1)
    case = CASES["fsdp"]
    return distributed.measure_ranks(plan_of_case(case), case.layout, options, here, finish)


if __name__ == "__main__":
    leave_process(main(Path(sys.argv[1]), sys.argv[2:]))
