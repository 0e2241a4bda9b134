"""PyTorch 2.13's runtime of pipeline schedules: how long a rank keeps what it sends and receives.

From torch/distributed/pipelining/schedules.py and stage.py:
- the stage's forward cache holds a stream until its backward is over;
- a send's Work object holds what it sends (ProcessGroupNCCL's outputs_, gloo's SendWork), and the
  schedules keep these objects: GPipe and every schedule with several chunks until the step's end,
  1F1B the last ones (pytorch/pytorch pull request 193903 describes and measures it);
- streams and gradients arrive in buffers of their own for every micro-batch, made once;
- between chunks on the same rank the tensor itself becomes the buffer, until the next step's does;
- the half backward leaves the gradient on the input buffer until the next step begins.
Checked by: oracle/test_pipeline.py, against that runtime on storages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from memcalc.engine.parallel.pipeline.actions import Action, Pipe
from memcalc.engine.parallel.pipeline.pipeline_program import Item, Program, Step
from memcalc.engine.parallel.pipeline.schedules import chunks_of, rank_actions


def torch_step(schedule: str, pipe: Pipe, rank: int) -> Step:
    """A rank's step under PyTorch's schedules."""
    program = Program(pipe)
    actions, own = rank_actions(schedule, pipe, rank), chunks_of(schedule, pipe, rank)
    _make_buffers(program, own, pipe.batches)
    if schedule == "gpipe":
        _gpipe(program, actions)
    elif schedule == "1f1b":
        _one_f_one_b(program, actions)
    else:
        _several_chunks(program, actions, own)
    return program.end()


def _make_buffers(program: Program, own: Sequence[int], batches: int) -> None:
    """A buffer for every micro-batch of all that comes; a neighbour on this rank fills it anew."""
    local = set(_local_buffers(own))
    for kind in ("input", "seed"):
        for chunk in own:
            for batch in range(batches):
                item = Item(kind, chunk, batch)
                program.holds(item) if (chunk, kind) in local else program.stands(item)


def _gpipe(program: Program, actions: Sequence[Action]) -> None:
    """Every send's Work stays in a list until the schedule returns."""
    for action in actions:
        kind, chunk, batch = action
        program.do(action)
        name = "stream" if kind == "F" else "gradient"
        program.bind((name, batch), Item(name, chunk, batch))


def _one_f_one_b(program: Program, actions: Sequence[Action]) -> None:
    """Variables of the schedule: the last output and its send, the last gradient and its send."""
    last_chunk = actions[0].chunk == program.chunks - 1
    forwards = [action for action in actions if action.kind == "F"]
    ahead = next(i for i, action in enumerate(actions) if action.kind == "B")
    steady = len(forwards) - ahead  # backwards that are followed by a forward
    for action in actions:
        kind, chunk, batch = action
        program.do(action)
        stream, gradient = Item("stream", chunk, batch), Item("gradient", chunk, batch)
        if kind == "F":
            program.bind(("cache", batch), stream)
            program.bind("output", stream)
            program.bind("forward sends", stream)
            if batch < ahead - 1:
                program.bind("send work", stream)
            if last_chunk:
                program.bind(("loss", batch), stream)
            continue
        program.bind(("cache", batch), None)
        program.bind("backward sends", gradient)
        if batch >= steady:
            program.bind("send work", gradient)


def _several_chunks(program: Program, actions: Sequence[Action], own: Sequence[int]) -> None:
    """Chunks in PyTorch's runtime of schedules: every send's Work stays until the step's end."""
    for action in actions:
        kind, chunk, batch = action
        program.do(action)
        stream, gradient = Item("stream", chunk, batch), Item("gradient", chunk, batch)
        if kind == "F":
            program.bind(("cache", chunk, batch), stream)
            if chunk + 1 in own:
                program.bind(Item("input", chunk + 1, batch), stream)
            else:
                program.bind(("sent", chunk, batch), stream)
            continue
        if kind in "BI":
            if chunk - 1 in own:
                program.bind(Item("seed", chunk - 1, batch), gradient)
            else:
                program.bind(("sent back", chunk, batch), gradient)
        if kind == "I":
            program.bind(Item("left on the input", chunk, batch), gradient)
        if kind in "BW":
            program.bind(("cache", chunk, batch), None)


def _local_buffers(own: Sequence[int]) -> Iterator[tuple[int, str]]:
    """Buffers that a neighbouring chunk on the same rank fills: (chunk, what is in them)."""
    for chunk in own:
        if chunk - 1 in own:
            yield chunk, "input"
        if chunk + 1 in own:
            yield chunk, "seed"
