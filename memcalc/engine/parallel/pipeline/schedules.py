"""Pipeline schedules: what each rank computes, in order, as a list of actions.

A pipeline cuts the model into chunks, numbered in the order of the forward pass. A rank holds one of
them, or several. An action is one chunk's work on one micro-batch: F forward, B backward, or backward
in two halves, I (gradients of inputs) and W (gradients of weights). Idle time is not an action.
Looped placement: rank r holds chunks r, r + pp, r + 2 pp, ...; in a V (schedules_v.py) chunks r and
2 pp - 1 - r. Sources: Huang et al. 2018 (arXiv:1811.06965) GPipe; Narayanan et al. 2021
(arXiv:2104.04473) 1F1B, interleaved; Qi et al. 2023 (arXiv:2401.10241) zero bubble; the order of each
is that of PyTorch 2.13, torch/distributed/pipelining/schedules.py.
Checked by: oracle/test_pipeline_schedules.py, against PyTorch's own lists.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from memcalc.engine.parallel.pipeline.actions import Action, Pipe
from memcalc.engine.parallel.pipeline.schedules_v import dual_pipe_v, zero_bubble_v
from memcalc.errors import ConfigError

#: Schedules whose ranks hold the chunks of a V: the first and the last chunk share a rank.
V_SHAPED = frozenset({"zb-v", "dualpipe"})
#: Schedules that put off gradients of weights.
SPLIT_BACKWARD = frozenset({"zb-h1", "zb-v", "dualpipe"})
#: Micro-batches times chunks that are walked one by one, which takes some seconds.
MOST_ACTIONS = 1 << 18


def chunks_of(schedule: str, pipe: Pipe, rank: int) -> tuple[int, ...]:
    """The chunks a rank holds, in the order of the forward pass."""
    if schedule in V_SHAPED:
        return rank, 2 * pipe.pp - 1 - rank
    return tuple(range(rank, pipe.pp * pipe.vpp, pipe.pp))


def rank_actions(schedule: str, pipe: Pipe, rank: int) -> tuple[Action, ...]:
    """Everything a rank computes in one step, in order. The pipe must have passed `check_pipe`."""
    return tuple(_SCHEDULES[schedule](pipe, rank))


def check_pipe(schedule: str, pipe: Pipe, fewer_batches: bool = False) -> None:
    """Raise ConfigError for micro-batches a schedule cannot run.

    fewer_batches: the stack runs 1F1B with fewer micro-batches than stages (Megatron-LM does,
    PyTorch does not), and interleaves only multiples of the stages.
    """
    got = f"grad-accum: got {pipe.batches} with --schedule {schedule} --pp {pipe.pp}"
    stages = pipe.pp * pipe.vpp
    if pipe.batches * stages > MOST_ACTIONS:
        raise ConfigError(
            f"{got}, {pipe.batches * stages:,} micro-batches of stages; rule: at most {MOST_ACTIONS:,}; "
            f"nearest valid: {MOST_ACTIONS // stages}"
        )
    if schedule == "1f1b" and pipe.batches < pipe.pp and not fewer_batches:
        raise ConfigError(
            f"{got}; rule: at least a micro-batch for each of the {pipe.pp} stages (PyTorch); "
            f"valid: {pipe.pp} and more, or --schedule gpipe"
        )
    if schedule == "dualpipe" and pipe.batches < stages:
        raise ConfigError(
            f"{got}; rule: at least as many micro-batches as chunks; valid: {stages} and more"
        )
    if schedule not in ("interleaved", "zb-h1"):
        return
    if fewer_batches and pipe.batches % pipe.pp:
        near = max(1, round(pipe.batches / pipe.pp)) * pipe.pp
        raise ConfigError(f"{got}; rule: a multiple of the stages; nearest valid: {near}")
    if pipe.batches % pipe.rounds:
        near = pipe.batches // pipe.rounds * pipe.rounds
        raise ConfigError(
            f"{got}; rule: a multiple of its {pipe.rounds} rounds of at least {pipe.pp}; "
            f"nearest valid: {near}"
        )


def warm_up(schedule: str, pipe: Pipe, rank: int) -> int:
    """Forwards of "1f1b" or "interleaved" before a rank does a forward and a backward in turn."""
    if schedule == "1f1b":
        return min(pipe.pp - 1 - rank, pipe.batches)
    ahead = (pipe.vpp - 1) * pipe.per_round + 2 * (pipe.pp - 1 - rank)
    return min(ahead, pipe.batches * pipe.vpp)


def most_in_flight(actions: Sequence[Action]) -> dict[int, int]:
    """The most micro-batches of each chunk between their forward and the end of their backward."""
    now: Counter[int] = Counter()
    most: dict[int, int] = {}
    for kind, chunk, _ in actions:
        now[chunk] += {"F": 1, "B": -1, "I": 0, "W": -1}[kind]
        most[chunk] = max(most.get(chunk, 0), now[chunk])
    return most


def _gpipe(pipe: Pipe, rank: int) -> list[Action]:
    """All forwards, then all backwards in the same order."""
    batches = range(pipe.batches)
    return [Action("F", rank, m) for m in batches] + [Action("B", rank, m) for m in batches]


def _one_f_one_b(pipe: Pipe, rank: int) -> list[Action]:
    """A forward for each later stage, then one forward and one backward in turn."""
    ahead = warm_up("1f1b", pipe, rank)
    out = [Action("F", rank, m) for m in range(ahead)]
    for m in range(pipe.batches):
        if m + ahead < pipe.batches:
            out.append(Action("F", rank, m + ahead))
        out.append(Action("B", rank, m))
    return out


def _interleaved(pipe: Pipe, rank: int) -> list[Action]:
    """One forward and one backward in turn, over chunks that change every round of micro-batches."""
    ahead = warm_up("interleaved", pipe, rank)
    forwards, backwards = _chunk_orders(pipe, rank)
    out = forwards[:ahead]
    for number, backward in enumerate(backwards):
        out += [*forwards[ahead + number : ahead + number + 1], backward]
    return out


def _zero_bubble_h1(pipe: Pipe, rank: int) -> list[Action]:
    """1F1B whose gradients of weights come `rank` micro-batches late: no more in flight than 1F1B."""
    ahead = warm_up("1f1b", pipe, rank)
    forwards, backwards = _chunk_orders(pipe, rank)
    out = forwards[:ahead]
    for number, (_, chunk, batch) in enumerate(backwards):
        out += [*forwards[ahead + number : ahead + number + 1], Action("I", chunk, batch)]
        if number >= rank:
            out.append(Action("W", *backwards[number - rank][1:]))
    return out + [Action("W", *late[1:]) for late in backwards[max(0, len(backwards) - rank) :]]


def _chunk_orders(pipe: Pipe, rank: int) -> tuple[list[Action], list[Action]]:
    """All forwards and all backwards of a rank, chunk by chunk within a round of micro-batches."""
    own = range(rank, pipe.pp * pipe.vpp, pipe.pp)
    rounds = [range(at, at + pipe.per_round) for at in range(0, pipe.batches, pipe.per_round)]
    forwards = [Action("F", chunk, m) for batches in rounds for chunk in own for m in batches]
    backwards = [
        Action("B", chunk, m) for batches in rounds for chunk in reversed(own) for m in batches
    ]
    return forwards, backwards


_SCHEDULES: dict[str, Callable[[Pipe, int], list[Action]]] = {
    "gpipe": _gpipe,
    "1f1b": _one_f_one_b,
    "interleaved": _interleaved,
    "zb-h1": _zero_bubble_h1,
    "zb-v": zero_bubble_v,
    "dualpipe": dual_pipe_v,
}
