"""Schedules over a V: rank r holds chunk r on the way down and chunk 2 pp - 1 - r on the way up.

ZB-V splits every backward; DualPipeV (the V that DualPipe's two opposite pipelines fold into, so that
a rank holds its parameters once) splits those at the ends. DualPipe proper, with two copies of the
parameters on each rank, is not here. Sources: Qi et al. 2023 (arXiv:2401.10241, sec. 6); DeepSeek-V3
(arXiv:2412.19437); the order of actions is PyTorch 2.13's, ScheduleZBVZeroBubble and
ScheduleDualPipeV. Checked by: oracle/test_pipeline_schedules.py.
"""

from __future__ import annotations

from collections import Counter, deque

from memcalc.engine.parallel.pipeline.actions import Action, Pipe


class _Rank:
    """The actions of one rank in the making; micro-batches of each chunk and kind come in turn."""

    def __init__(self, pipe: Pipe, rank: int) -> None:
        self.down, self.up = rank, 2 * pipe.pp - 1 - rank
        self.actions: list[Action] = []
        self.done: Counter[tuple[str, int]] = Counter()
        self.late: deque[Action] = deque()  # gradients of weights put off

    def add(self, kinds: str, chunk: int) -> None:
        """The next micro-batch of a chunk through each kind of action."""
        for kind in kinds:
            counted = "I" if kind == "B" else kind
            batch = self.done[counted, chunk]
            self.done[counted, chunk] += 1
            self.actions.append(Action(kind, chunk, batch))
            if kind == "I":
                self.late.append(Action("W", chunk, batch))

    def weights(self) -> None:
        """The oldest gradients of weights that are due."""
        if self.late:
            self.actions.append(self.late.popleft())


def zero_bubble_v(pipe: Pipe, rank: int) -> list[Action]:
    """ZB-V. With fewer micro-batches than fill the V, the missing ones are left out."""
    batches = max(2 * pipe.pp - 1, pipe.batches)
    own = _Rank(pipe, rank)
    down, up, after = own.down, own.up, pipe.pp - rank
    for _ in range(2 * after - 1):
        own.add("F", down)
    for _ in range(rank):
        own.add("F", up)
        own.add("F", down)
    for _ in range(after):
        own.add("FIW", up)
    while own.done["F", up] < own.done["F", down] or own.done["F", down] < batches:
        if own.done["F", down] < batches:
            own.add("F", down)
        own.add("IW", down)
        own.add("FIW", up)
    for _ in range(rank):
        own.add("I", down)
        own.add("I", up)
    for _ in range(after):
        own.add("IW", down)
    for chunk in (up, down):
        while own.done["W", chunk] < own.done["I", chunk]:
            own.add("W", chunk)
    return [action for action in own.actions if action.batch < pipe.batches]


def dual_pipe_v(pipe: Pipe, rank: int) -> list[Action]:
    """DualPipeV; a forward and a backward that overlap in time are two actions, forward first."""
    own = _Rank(pipe, rank)
    down, up, after = own.down, own.up, pipe.pp - 1 - rank
    for _ in range(2 * after):
        own.add("F", down)
    for _ in range(rank + 1):
        own.add("F", down)
        own.add("F", up)
    for _ in range(after):
        own.add("I", up)
        own.weights()
        own.add("F", up)
    for _ in range(pipe.batches - 2 * pipe.pp + rank + 1):
        own.add("F", down)
        own.add("B", up)
        own.add("F", up)
        own.add("B", down)
    for _ in range(after):
        own.add("B", up)
        own.add("F", up)
        own.add("B", down)
    split = _last_chunks(own, rank)
    for _ in range(after):
        own.weights()
        own.add("I" if split else "B", down)
    for _ in range(rank + 1):
        own.weights()
    return own.actions


def _last_chunks(own: _Rank, rank: int) -> bool:
    """The last backwards of both chunks, the second half of them split; whether any was."""
    turn, split = (rank + 1) // 2, False
    for number in range(rank + 1):
        split = split or (number == turn and rank % 2 == 1)
        own.add("I" if split else "B", own.up)
        split = split or (number == turn and rank % 2 == 0)
        own.add("I" if split else "B", own.down)
    return split
