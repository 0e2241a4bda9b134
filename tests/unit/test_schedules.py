"""Schedules by hand, and the names that hold what stages send and receive."""

from __future__ import annotations

import pytest

from memcalc.engine.parallel.pipeline.actions import Action, Pipe
from memcalc.engine.parallel.pipeline.pipeline_megatron import megatron_step
from memcalc.engine.parallel.pipeline.pipeline_program import Drop, Item, Program, Step, Take
from memcalc.engine.parallel.pipeline.pipeline_torch import torch_step
from memcalc.engine.parallel.pipeline.schedules import (
    check_pipe,
    chunks_of,
    most_in_flight,
    rank_actions,
    warm_up,
)
from memcalc.errors import ConfigError


def text(schedule: str, pipe: Pipe, rank: int) -> str:
    """A rank's actions as F0 F1 B0, with the chunk after a colon where it holds several."""
    several = len(chunks_of(schedule, pipe, rank)) > 1
    return " ".join(
        f"{kind}{batch}{f':{chunk}' if several else ''}"
        for kind, chunk, batch in rank_actions(schedule, pipe, rank)
    )


def test_orders_of_the_papers() -> None:
    """GPipe, fig. 2; 1F1B and interleaved, Narayanan et al. 2021 figs. 3 and 4; ZB-H1, Qi et al. fig. 2."""
    pipe = Pipe(2, 1, 3)
    assert text("gpipe", pipe, 0) == "F0 F1 F2 B0 B1 B2"
    assert text("1f1b", pipe, 0) == "F0 F1 B0 F2 B1 B2"
    assert text("1f1b", pipe, 1) == "F0 B0 F1 B1 F2 B2"
    assert text("zb-h1", pipe, 1) == "F0 I0 F1 I1 W0 F2 I2 W1 W2"
    interleaved = text("interleaved", Pipe(2, 2, 2), 1)
    assert interleaved == "F0:1 F1:1 F0:3 B0:3 F1:3 B1:3 B0:1 B1:1"


def test_a_v_puts_the_first_and_the_last_chunk_on_one_rank() -> None:
    pipe = Pipe(4, 2, 8)
    assert [chunks_of("zb-v", pipe, rank) for rank in range(4)] == [(0, 7), (1, 6), (2, 5), (3, 4)]
    assert [chunks_of("interleaved", pipe, rank) for rank in (0, 3)] == [(0, 4), (3, 7)]


@pytest.mark.parametrize("batches", [1, 2, 4, 5, 12])
def test_1f1b_keeps_a_micro_batch_for_each_later_stage(batches: int) -> None:
    for rank in range(5):
        pipe = Pipe(5, 1, batches)
        assert warm_up("1f1b", pipe, rank) == min(4 - rank, batches)
        most = most_in_flight(rank_actions("1f1b", pipe, rank))
        assert most == {rank: min(5 - rank, batches)}


def test_interleaving_keeps_more_on_the_first_rank() -> None:
    """Korthikanti et al. 2022 (arXiv:2205.05198), sec. 4.2.3: 1 + (pp - 1) / (pp vpp) times as much."""
    pp, vpp = 4, 2
    plain = sum(most_in_flight(rank_actions("1f1b", Pipe(pp, 1, 16), 0)).values()) * vpp
    actions = rank_actions("interleaved", Pipe(pp, vpp, 16), 0)
    now = most = 0
    for action in actions:
        now += 1 if action.kind == "F" else -1
        most = max(most, now)
    assert most == plain * (1 + (pp - 1) / (pp * vpp))


def test_what_may_run_is_a_rule_of_the_runtime() -> None:
    check_pipe("1f1b", Pipe(16, 1, 4), fewer_batches=True)
    with pytest.raises(ConfigError, match="16 and more, or --schedule gpipe"):
        check_pipe("1f1b", Pipe(16, 1, 4))
    with pytest.raises(ConfigError, match="nearest valid: 4"):
        check_pipe("interleaved", Pipe(4, 2, 5), fewer_batches=True)


def test_a_tensor_goes_when_its_last_name_does() -> None:
    program, stream = Program(Pipe(2, 1, 2)), Item("stream", 0, 0)
    other, stub = Item("stream", 0, 1), Item("stub", 0, 0)
    program.bind("a", stream)
    program.bind("b", stream)
    program.bind("a", other)
    assert program.instructions == []
    program.take(("of", stream), stub)
    program.bind("b", None)
    assert program.instructions == [Take(stub), Drop(stream), Drop(stub)]
    assert program.end().instructions[-1] == Drop(other)


def test_what_the_ends_do_not_have_is_never_bound() -> None:
    program = Program(Pipe(2, 1, 2))
    for item in (Item("input", 0, 0), Item("gradient", 0, 0), Item("seed", 1, 0)):
        program.take("name", item)
        assert program.held_by("name") is None
    assert program.instructions == []


def alive(step: Step, kind: str) -> int:
    """The most items of a kind at once."""
    now = most = sum(item.kind == kind for item in step.standing)
    for one in step.instructions:
        if isinstance(one, Action):
            made = {"F": "stream", "B": "gradient"}.get(one.kind)
            now += made == kind
        elif one.item.kind == kind:
            now += 1 if isinstance(one, Take) else -1
        most = max(most, now)
    return most


def test_megatron_gives_streams_back_and_pytorch_keeps_them() -> None:
    """Stage 0 of 4 with 16 micro-batches: in flight 4; PyTorch has all buffers from the start."""
    pipe = Pipe(4, 1, 16)
    mine, torchs = megatron_step("1f1b", pipe, 0), torch_step("1f1b", pipe, 0)
    assert alive(mine, "stream") == 1
    assert alive(torchs, "stream") >= 4
    assert alive(mine, "seed") == 2  # one comes before the last one goes
    assert alive(torchs, "seed") == 16
    assert alive(megatron_step("1f1b", pipe, 1), "input") <= 3 + 2
    assert alive(torch_step("1f1b", pipe, 1), "input") == 16
