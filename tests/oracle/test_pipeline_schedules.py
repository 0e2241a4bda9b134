"""Every schedule's list of actions, rank by rank, against PyTorch's own; what may run against its errors."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from torch.distributed.pipelining import schedules as torch_schedules

from memcalc.engine.parallel.pipeline.actions import Action, Pipe
from memcalc.engine.parallel.pipeline.schedules import (
    check_pipe,
    chunks_of,
    most_in_flight,
    rank_actions,
)
from memcalc.errors import ConfigError

TORCH: dict[str, Any] = {
    "gpipe": torch_schedules.ScheduleGPipe,
    "1f1b": torch_schedules.Schedule1F1B,
    "interleaved": torch_schedules.ScheduleInterleaved1F1B,
    "zb-h1": torch_schedules.ScheduleInterleavedZeroBubble,
    "zb-v": torch_schedules.ScheduleZBVZeroBubble,
    "dualpipe": torch_schedules.ScheduleDualPipeV,
}
SINGLE = ("gpipe", "1f1b")
LETTERS = {"FORWARD": "F", "FULL_BACKWARD": "B", "BACKWARD_INPUT": "I", "BACKWARD_WEIGHT": "W"}


class _Recorder(SimpleNamespace):
    """A stage that notes what a schedule of one chunk a rank asks of it."""

    def __init__(self, pipe: Pipe, rank: int) -> None:
        super().__init__(num_stages=pipe.pp, stage_index=rank, is_last=False, done=[])

    def forward_one_chunk(self, batch: int, *args: Any, **kwargs: Any) -> None:
        self.done.append(Action("F", self.stage_index, batch))

    def backward_one_chunk(self, batch: int, **kwargs: Any) -> None:
        self.done.append(Action("B", self.stage_index, batch))

    def __getattr__(self, name: str) -> Any:
        return lambda *args: []  # sends, receives, scaling


def torch_run(name: str, pipe: Pipe) -> dict[int, list[Action]]:
    """What the schedules of one chunk a rank run. (Their printed order miscounts the last stage's.)"""
    done = {}
    for rank in range(pipe.pp):
        stage = _Recorder(pipe, rank)
        schedule = TORCH[name](stage, pipe.batches)
        schedule._initialize_stage = lambda *args: None
        schedule._step_microbatches()
        done[rank] = stage.done
    return done


def torch_order(name: str, pipe: Pipe) -> dict[int, list[Action]]:
    """PyTorch's lists for all ranks; raises ValueError where PyTorch does."""
    if name in SINGLE:
        return torch_run(name, pipe)
    stage = SimpleNamespace(
        num_stages=pipe.pp * pipe.vpp,
        group_size=pipe.pp,
        group_rank=0,
        stage_index=0,
        submod=None,
    )
    order = TORCH[name]([stage] * pipe.vpp, pipe.batches).pipeline_order
    return {rank: list(_flat(actions)) for rank, actions in order.items()}


def _flat(actions: Any) -> Any:
    for action in actions:
        if action is None:
            continue
        for one in action.sub_actions or (action,):
            letter = LETTERS.get(one.computation_type.name)
            if letter:  # REDUCE_GRAD is no work on a micro-batch
                yield Action(letter, one.stage_index, one.microbatch_index)


def pipes(name: str) -> list[Pipe]:
    chunks = {"interleaved": (2, 3, 4), "zb-v": (2,), "dualpipe": (2,)}.get(name, (1,))
    return [
        Pipe(pp, vpp, batches)
        for pp in (2, 3, 4, 5, 8)
        for vpp in chunks
        for batches in (1, 2, 3, 4, 5, 6, 8, 9, 10, 16, 17, 24)
    ]


@pytest.mark.parametrize("name", TORCH)
def test_actions_and_refusals_are_those_of_pytorch(name: str) -> None:
    compared = 0
    for pipe in pipes(name):
        try:
            expected = torch_order(name, pipe)
        except ValueError:
            with pytest.raises(ConfigError, match="grad-accum"):
                check_pipe(name, pipe)
            continue
        check_pipe(name, pipe)
        compared += 1
        for rank in range(pipe.pp):
            assert list(rank_actions(name, pipe, rank)) == expected[rank], (pipe, rank)
    assert compared >= 20


@pytest.mark.parametrize("name", TORCH)
def test_a_rank_computes_every_micro_batch_of_its_chunks_once(name: str) -> None:
    vpp = {"interleaved": 3, "zb-v": 2, "dualpipe": 2}.get(name, 1)
    pipe = Pipe(4, vpp, 8)
    held = [chunk for rank in range(4) for chunk in chunks_of(name, pipe, rank)]
    assert sorted(held) == list(range(4 * vpp))
    for rank in range(4):
        actions = rank_actions(name, pipe, rank)
        assert len(set(actions)) == len(actions)
        for chunk in chunks_of(name, pipe, rank):
            for batch in range(8):
                kinds = "".join(a.kind for a in actions if a[1:] == (chunk, batch))
                assert kinds in ("FB", "FIW")


@pytest.mark.parametrize("batches", [1, 2, 4, 7, 16])
def test_micro_batches_in_flight_follow_from_the_order(batches: int) -> None:
    """GPipe holds all, 1F1B one for each stage from this one on, ZB-H1 as many as 1F1B."""
    pipe = Pipe(4, 1, batches)
    for rank in range(4):
        assert most_in_flight(rank_actions("gpipe", pipe, rank)) == {rank: batches}
        one_f_one_b = {rank: min(batches, 4 - rank)}
        assert most_in_flight(rank_actions("1f1b", pipe, rank)) == one_f_one_b
    if batches >= 4:
        late = [most_in_flight(rank_actions("zb-h1", pipe, rank))[rank] for rank in range(4)]
        assert late == [4] * 4 or batches == 4 and max(late) <= 4


def test_interleaved_chunks_in_flight_are_those_of_the_paper() -> None:
    """Narayanan et al. 2021: a warm-up of 2 (pp - 1 - rank) + (vpp - 1) pp, and one more in turn."""
    pipe = Pipe(4, 2, 16)
    for rank in range(4):
        actions = rank_actions("interleaved", pipe, rank)
        first = next(i for i, action in enumerate(actions) if action.kind == "B")
        assert first == 2 * (4 - 1 - rank) + (2 - 1) * 4 + 1


def test_megatrons_rules_differ_from_pytorchs() -> None:
    check_pipe("1f1b", Pipe(4, 1, 2), fewer_batches=True)
    with pytest.raises(ConfigError, match="nearest valid: 8"):
        check_pipe("interleaved", Pipe(4, 2, 9), fewer_batches=True)
    with pytest.raises(ConfigError, match="at least a micro-batch for each of the 4 stages"):
        check_pipe("1f1b", Pipe(4, 1, 2))
