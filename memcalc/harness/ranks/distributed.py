"""measure on the ranks of a torchrun: the same stages on each rank, one record a rank, written by rank 0.

`measure_ranks` is called by every process. Its run is memcalc/harness/measured_run.py with a rank's step
(rank_step.py); ranks begin the first, the timed and the tracked steps together. A step's time is the
slowest rank's, the loss the mean over the ranks that have one, tokens/s those of all ranks.
`rank_bytes` of rank_records.py says what each rank's estimate is to be held against.
Checked by: harness/test_distributed.py, cli/test_distributed.py.
"""

from __future__ import annotations

import itertools
import warnings
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from memcalc.engine.memory import step_memory
from memcalc.engine.plan import Plan
from memcalc.harness.measure import MeasureOptions, measure
from memcalc.harness.measured_run import MeasuredRun, Progress
from memcalc.harness.ranks.board import Board, need_address
from memcalc.harness.ranks.layout import Layout, World
from memcalc.harness.ranks.layout_rules import check_layout
from memcalc.harness.ranks.part import running_plan
from memcalc.harness.ranks.rank_end import Ending, Finish
from memcalc.harness.ranks.rank_step import RankStep
from memcalc.harness.ranks.ranks import Ranks, join, leave, most_of_all, rank_device, sum_of_all
from memcalc.harness.record_head import stated
from memcalc.harness.step import TrainingStep
from memcalc.harness.step_clock import LossLog, loss_summary, spread_of

_TOGETHER = ("first step", "timed steps", "memory")
_runs = itertools.count()


def measure_ranks(
    plan: Plan,
    layout: Layout,
    options: MeasureOptions,
    world: World,
    finish: Finish,
    progress: Progress | None = None,
) -> int:
    """Measure a plan on this rank, and end together with the others; the exit status of the run.

    finish: called on rank 0 with every rank's record; what it returns is the status of all ranks.
    Raises ConfigError for a layout the plan cannot have and a device that is not there. If a rank
    fails, the others' processes end here within seconds and this does not return.
    """
    check_layout(layout, plan)
    need_address()
    device = rank_device(options.device, world)
    shared = (
        device.type == "cpu" and world.local_size > 1
    )  # a matmul of each would slow the others'
    options = replace(options, device=str(device), ceiling=options.ceiling and not shared)
    ranks = join(layout, device, world)
    ending = Ending(Board(str(next(_runs))), world, finish)
    ending.start()
    try:
        with warnings.catch_warnings():
            # FSDP warns of a loss that is a view; nothing changes it in place
            warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
            run = partial(RankRun, ranks=ranks, world=world, ending=ending)
            record = measure(plan, options, progress, run)
        if record["status"] != "ok":
            ending.announce()
        status = ending.conclude(record)
    finally:
        ending.stop()
    if record["status"] == "ok":
        leave()
    return status


class RankRun(MeasuredRun):
    """A measured run whose steps are this rank's part of those of all ranks."""

    def __init__(
        self, plan: Plan, options: MeasureOptions, device: torch.device, record: dict[str, Any],
        progress: Progress | None, **ours: Any,
    ) -> None:  # fmt: skip
        self.ranks: Ranks = ours["ranks"]
        self.ending: Ending = ours["ending"]
        super().__init__(plan, options, device, record, progress)
        self.world: World = ours["world"]
        self.devices = self.world.size
        self.losses = _RankLosses(device, 1 + self.warmup + self.steps)
        running, batch = running_plan(plan, self.ranks), record["setup"]["resolved"]
        batch["kernels"] = stated(running)["resolved"]["kernels"]
        batch["global_batch"] *= self.ranks.layout.dp
        record |= {"rank": self.world.rank, "world": self._world()}
        if not options.ceiling:
            record["notes"].append("no matmul was timed: the ranks share this machine's cores")
        self.ending.record = record

    def _world(self) -> dict[str, Any]:
        """What a record says of the ranks, this one's place, and what runs on them."""
        layout, place = self.ranks.layout, self.ranks.place
        blocks = layout.stage_layers(self.plan.config.num_hidden_layers)[place.pp]
        return {
            "size": self.world.size,
            **layout.plain(),
            "backend": self.ranks.backend,
            "hosts": self.world.hosts,
            "pp_rank": place.pp,
            "dp_rank": place.dp,
            "tp_rank": place.tp,
            "cp_rank": place.cp,
            "blocks": [blocks.start, blocks.stop],  # of this stage: from, up to
            "mixed_precision": self._casts(),
            "data_parallel": self._reduction(),
        }

    def _casts(self) -> str | None:
        kernels = self.plan.kernels
        if not kernels.autocast:
            return None
        if self.ranks.layout.fsdp:
            return f"fsdp policy: parameters gathered in {kernels.compute_dtype}, reduced in fp32"
        return f"autocast: {kernels.param_dtype} parameters cast to {kernels.compute_dtype}"

    def _reduction(self) -> str | None:
        layout = self.ranks.layout
        if layout.fsdp:
            return "fsdp2: a group a block and the rest"
        return "ddp: gradients are views of buckets of 25 MiB" if layout.replicas > 1 else None

    def _made_step(self) -> TrainingStep:
        return RankStep(self.plan, self.ranks, self.options.seed)

    def host_bytes(self) -> int:
        """What this host's ranks take at least: whole steps under DDP, else their share of the states."""
        layout, memory = self.ranks.layout, step_memory(self.plan)
        if layout.tp == layout.pp == layout.cp == 1 and not layout.fsdp:
            return memory.peak_bytes * self.world.local_size
        held = memory.states
        states = held.parameter_bytes + held.optimizer_bytes + held.master_bytes
        split = layout.tp * layout.pp * (layout.replicas if layout.fsdp else 1)
        return states // split * self.world.local_size

    def _enter(self, stage: str) -> None:
        super()._enter(stage)
        self.ending.at(stage)
        if stage in _TOGETHER:
            dist.barrier()

    def _timed(self) -> None:
        super()._timed()
        self._agree()

    def _read_clock(self) -> None:
        """The tokens of a step are those of all ranks."""
        read = self.clock is not None
        super()._read_clock()
        for name in ("tokens_per_step", "tokens_per_s"):
            if read and self.time.get(name) is not None:
                self.time[name] *= self.ranks.layout.dp

    def _agree(self) -> None:
        """Step times of the slowest rank, tokens of all, the mean of the losses: the same on all ranks."""
        own = self.time["step_s"]
        seconds = most_of_all(own, self.device)
        spread = spread_of(seconds)
        median, tokens = spread["median_s"], self.time["tokens_per_step"]
        self.time |= {"step_s": seconds, "rank_step_s": own, **spread,
                      "tokens_per_s": tokens / median if median else None}  # fmt: skip
        loss = self.record["loss"]
        values = [0.0] * self.losses.most if loss is None else loss["values"]
        having = self.devices // self.ranks.layout.pp
        means = [total / having for total in sum_of_all(values, self.device)]
        self.record["rank_loss"] = None if loss is None else values
        self.record["loss"] = loss_summary(means)
        if self.plan.optimizer.name != "none":
            self.record["loss_fell"] = self.record["loss"]["fell"]

    def _pass_over(self, what: str, error: Exception) -> None:
        raise error  # the other ranks are in the middle of the same steps

    def salvage(self) -> None:
        """Tell the other ranks first: reading a device may wait for them."""
        self.ending.announce()
        super().salvage()


class _RankLosses(LossLog):
    """Losses of a rank that may have none: stages before the last."""

    def add(self, loss: Tensor | None) -> None:
        """Keep a loss if there is one."""
        if loss is not None:
            super().add(loss)
