"""Time of a pipeline's step: every rank runs its actions in order, each when what it needs has arrived.

An action starts when its rank is free and its inputs are there: a forward needs the stream of the
chunk before, a backward the gradient of the chunk after (and what its own forward left), the gradients
of weights need their own gradients of inputs. What comes from another rank takes `send_s` more. The
order is the schedule's (engine/parallel/pipeline/schedules.py); chunks may take different seconds.

    span    from the first start to the last end, of all ranks
    ideal   what the busiest rank computes, without a wait
    bubble  span - ideal: how long the busiest rank waits, at the start, in between and at the end

The order being fixed, every start is a maximum of sums: no action that gets faster makes any other
later. Closed forms for equal stages: `bubble_closed`. Not here: the optimizer's step and what only it
waits for; exchanges beside the pipeline's, which are part of the chunks' seconds (overlap.py).
Source: Narayanan et al. 2021 (arXiv:2104.04473), sec. 2.2; Qi et al. 2023 (arXiv:2401.10241), sec. 2.
Checked by: unit/test_pipeline_time.py, property/test_pipeline_time.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import NamedTuple

from memcalc.engine.parallel.pipeline.actions import Action, Pipe
from memcalc.engine.parallel.pipeline.schedules import chunks_of
from memcalc.engine.timing.arith import Num, maximum, minimum
from memcalc.engine.timing.pipeline_order import Program, flattened, orders_of, program_of
from memcalc.engine.timing.pipeline_steady import (
    Durations,
    Timed,
    latest,
    starts_of,
    timed,
    timed_in_pieces,
)
from memcalc.errors import ConfigError

#: Lists of actions, one for each rank, instead of a schedule's name.
Orders = Sequence[Sequence[Action]]


class ChunkTime(NamedTuple):
    """Seconds of one micro-batch of one chunk: numbers, or arrays of one shape.

    input_s, weight_s: backward in halves; without them each is half of backward_s (with one, the
    other is the rest). first_forward_extra_s: what a chunk's first forward takes more (FSDP gathers with
    nothing before it). last_backward_extra_s: its last backward (gradients are reduced with nothing
    after it); where backward is split, the last gradients of weights.
    """

    forward_s: Num
    backward_s: Num
    input_s: Num | None = None
    weight_s: Num | None = None
    first_forward_extra_s: Num = 0
    last_backward_extra_s: Num = 0


class Slot(NamedTuple):
    """One action of a rank in a picture of the step; sending is not part of it."""

    rank: int
    action: Action
    start_s: Num
    end_s: Num


class PipelineTime(NamedTuple):
    """Seconds of a step's schedule. busy_s: what each rank computes; ideal_s: the most of them;
    bubble_s: span_s - ideal_s. slots: every action, rank by rank, where they were asked for.
    """

    span_s: Num
    ideal_s: Num
    bubble_s: Num
    busy_s: tuple[Num, ...]
    slots: tuple[Slot, ...] = ()


def pipeline_time(
    schedule: str | Orders,
    pipe: Pipe,
    chunks: Sequence[ChunkTime],
    send_s: Num | Sequence[Num] = 0,
    blocking: bool = False,
    with_slots: bool = False,
) -> PipelineTime:
    """Seconds of a schedule with these chunks, numbered in the order of the forward pass.

    schedule: its name, of a pipe that passed `check_pipe`; or the actions of each rank. send_s: of a
    stream or a gradient between two ranks, one for all, or one for each pair of chunks that follow
    each other. blocking: the sender computes nothing meanwhile (Megatron's 1F1B, or no
    overlap_p2p_comm); else sends run beside compute. with_slots: times of every action.
    Raises ConfigError for numbers of chunks or sends that are not the pipe's, or orders that cannot run.
    """
    sends = _sends(send_s, len(chunks))
    if len(chunks) != pipe.pp * pipe.vpp:
        raise ConfigError(
            f"chunks: got {len(chunks)}; rule: one time for each of the {pipe.pp} x {pipe.vpp}"
        )
    if isinstance(schedule, str):
        held = [chunks_of(schedule, pipe, rank) for rank in range(pipe.pp)]
        ranks = {chunk: rank for rank, own in enumerate(held) for chunk in own}
        times = _durations([ranks[chunk] for chunk in range(len(chunks))], chunks, sends, blocking)
        short = None if with_slots else timed_in_pieces(schedule, pipe, times)
        if short is not None:
            return _result(short)
        program, orders = program_of(schedule, pipe), None
    else:
        program, orders = flattened(schedule, len(chunks)), schedule
        times = _durations(program.ranks, chunks, sends, blocking)
    if not with_slots:
        return _result(timed(program, times))
    orders = orders or orders_of(str(schedule), pipe)
    return _result(timed(program, times), _slots(program, orders, times))


def bubble_closed(schedule: str, pp: int, vpp: int, m: int, chunk: ChunkTime) -> Num:
    """Seconds that a rank waits in a step of m micro-batches when all chunks take as long as this one.

    Sends are free, nothing is extra. p ranks of v chunks; f, i, w: a chunk's forward, gradients of
    inputs and of weights, b = i + w:

        gpipe, 1f1b    (p - 1) (f + b)       a rank computes m (f + b): (p - 1) / m of that
        interleaved    (p - 1) (f + b)       a rank computes m v (f + b): (p - 1) / (m v) of that
        zb-h1          (p - 1) (f + i - w)   gradients of weights fill the waits; longer ones than
                                             f or i fill no more than that

    m: interleaved, a multiple of p; zb-h1, at least p; gpipe and 1f1b, any. Raises ConfigError for
    another m or another schedule. Source: Narayanan et al. 2021 (arXiv:2104.04473), secs. 2.2.1 and
    2.2.2; Qi et al. 2023 (arXiv:2401.10241), table 1, for w <= f, i. Checked by: unit/test_pipeline_time.py.
    """
    if (schedule == "interleaved" and m % pp) or (schedule == "zb-h1" and m < pp):
        raise ConfigError(f"m: got {m} with {schedule}, p {pp}, v {vpp}; nearest valid: {pp}")
    if schedule in ("gpipe", "1f1b", "interleaved"):
        return (pp - 1) * (chunk.forward_s + chunk.backward_s)
    if schedule == "zb-h1":
        inputs, weights = _halves(chunk)
        filled = minimum(weights, minimum(chunk.forward_s, inputs))
        return (pp - 1) * (chunk.forward_s + inputs - filled)
    raise ConfigError(
        f"schedule: got {schedule!r}; rule: a closed form is known of gpipe, 1f1b, interleaved, zb-h1"
    )


def _result(step: Timed, slots: tuple[Slot, ...] = ()) -> PipelineTime:
    ideal = latest(step.busy_s)
    span = maximum(step.span_s, ideal)  # sums in another order may differ in the last digit
    return PipelineTime(span, ideal, span - ideal, step.busy_s, slots)


def _sends(send_s: Num | Sequence[Num], chunks: int) -> list[Num]:
    """Seconds between each two chunks that follow each other."""
    if not isinstance(send_s, (list, tuple)):
        return [send_s] * (chunks - 1)
    if len(send_s) != chunks - 1:
        raise ConfigError(
            f"send_s: got {len(send_s)} for {chunks} chunks; rule: one, or one fewer than chunks"
        )
    return [*send_s]


def _halves(chunk: ChunkTime) -> tuple[Num, Num]:
    """Seconds of gradients of inputs and of weights."""
    _, backward, inputs, weights, *_ = chunk
    if inputs is None:
        inputs = backward / 2 if weights is None else backward - weights
    return inputs, backward - inputs if weights is None else weights


def _durations(
    ranks: Sequence[int], chunks: Sequence[ChunkTime], sends: Sequence[Num], blocking: bool
) -> Durations:
    """Seconds of every kind of action of every chunk, in the order of pipeline_order.KINDS."""
    work: list[Num] = []
    sent: list[Num] = []
    for number, chunk in enumerate(chunks):
        forward, backward, (inputs, weights) = *chunk[:2], _halves(chunk)
        first, last = chunk.first_forward_extra_s, chunk.last_backward_extra_s
        work += [
            forward,
            backward,
            inputs,
            weights,
            forward + first,
            backward + last,
            weights + last,
        ]
        down = up = 0
        if number + 1 < len(chunks) and ranks[number + 1] != ranks[number]:
            down = sends[number]
        if number and ranks[number - 1] != ranks[number]:
            up = sends[number - 1]
        sent += [down, up, up, 0, down, up, 0]
    arrived = [a + b for a, b in zip(work, sent, strict=True)]
    plain = all(isinstance(one, Real) for one in arrived)
    return Durations([*work, 0], [*(arrived if blocking else work), 0], [*arrived, 0], plain)


def _slots(
    program: Program, orders: Sequence[Sequence[Action]], times: Durations
) -> tuple[Slot, ...]:
    """Every action of every rank, with when it computes."""
    starts, _ = starts_of(program, times)
    return tuple(
        Slot(rank, action, starts[row], starts[row] + times.work[program.rows[row][1]])
        for rank, (own, actions) in enumerate(zip(program.of_rank, orders, strict=True))
        for row, action in zip(own, actions, strict=True)
    )
