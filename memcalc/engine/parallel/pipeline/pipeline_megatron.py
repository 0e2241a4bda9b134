"""Megatron-Core 0.14's pipeline schedules: how long a rank keeps what it sends and receives.

From megatron/core/pipeline_parallel/{schedules,p2p_communication}.py:
- every stream and gradient that comes is a new tensor, kept until its backward is over; what is
  received in one exchange is made before what is sent there goes;
- a stream that was sent gives its memory back (deallocate_pipeline_outputs, on by default); backward
  begins at the stub that is left;
- the variables `output_tensor_grad` and `input_tensor_grad` keep the last gradient received and the last
  one sent until the next of each is there; in the interleaved schedule `input_tensor` keeps the last
  input of the warm-up, with its gradient, and `recv_next_wait_handle` the first gradient of the flush,
  both to the end;
- what is left of a sent stream, or the loss, holds the graph and so the input, which holds its
  gradient; `output_tensor` keeps the last one until the next forward is over;
- a model chunk keeps the input it was set last (TransformerBlock.input_tensor), with its gradient, until
  the next step's first forward.
The interleaved schedule overlaps its exchanges with computing (the default), not in warm-up and flush:
the next input comes before a backward, and a stream gives its memory back only before the next forward.
Checked by: oracle/test_megatron_pipeline.py, against those schedules run on a CPU; unit/test_schedules.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from memcalc.engine.parallel.pipeline.actions import Action, Pipe
from memcalc.engine.parallel.pipeline.pipeline_program import Item, Program, Step
from memcalc.engine.parallel.pipeline.schedules import chunks_of, rank_actions, warm_up


def megatron_step(schedule: str, pipe: Pipe, rank: int) -> Step:
    """A rank's step under Megatron's schedules, "1f1b" or "interleaved"."""
    program = _Program(pipe)
    own = chunks_of(schedule, pipe, rank)
    for chunk in own:
        program.holds(Item("input", chunk, -1))
        program.holds(Item("gradient", chunk, -1), ("of", Item("input", chunk, -1)))
    actions, ahead = rank_actions(schedule, pipe, rank), warm_up(schedule, pipe, rank)
    forwards = [action for action in actions if action.kind == "F"]
    backwards = [action for action in actions if action.kind == "B"]
    run = _one_f_one_b if schedule == "1f1b" else _interleaved
    run(program, forwards, backwards, ahead)
    for chunk in own:
        kept = program.held_by(Item("input", chunk, -1))
        program.bind(Item("gradient", chunk, -1), program.held_by(("of", kept)))
    return program.end()


class _Program(Program):
    """Names as the schedules have them; ("input", ...) and so on are the entries of their lists."""

    def forward(self, action: Action, name: str = "output_tensor") -> None:
        """A forward to a name: the chunk keeps its input instead of what it kept."""
        _, chunk, batch = action
        given, stream = Item("input", chunk, batch), Item("stream", chunk, batch)
        self.bind(("input", chunk, batch), given)
        self.bind(Item("input", chunk, -1), given)
        self.do(action)
        self.bind(name, stream)
        self.bind(("output", chunk, batch), stream)
        self.bind(("of", stream if chunk == self.chunks - 1 else Item("stub", *stream[1:])), given)

    def give_back(self, action: Action) -> None:
        """A stream that was sent gives its memory back; the loss is not sent."""
        _, chunk, batch = action
        if chunk < self.chunks - 1:
            stub = Item("stub", chunk, batch)
            self.take(("output", chunk, batch), stub)
            self.bind("output_tensor", stub)

    def pop(self, action: Action) -> None:
        """input_tensor and output_tensor become those of a backward."""
        _, chunk, batch = action
        self.bind("input_tensor", Item("input", chunk, batch))
        self.bind("output_tensor", self.held_by(("output", chunk, batch)))

    def backward(self, action: Action) -> None:
        """A backward; the gradient is bound to "made", and held by the input it is of."""
        _, chunk, batch = action
        gradient = Item("gradient", chunk, batch)
        self.do(action)
        self.bind("made", gradient)
        self.bind(("of", Item("input", chunk, batch)), gradient)
        for kind in ("input", "output", "seed"):
            self.bind((kind, chunk, batch), None)

    def received(self, name: str, kind: str, action: Action) -> None:
        """A new tensor for an action, bound to a name and in the list of its kind."""
        item = Item(kind, action.chunk, action.batch)
        self.take(name, item)
        self.bind((kind, action.chunk, action.batch), item)


def _one_f_one_b(
    program: _Program, forwards: Sequence[Action], backwards: Sequence[Action], ahead: int
) -> None:
    """forward_backward_pipelining_without_interleaving."""
    for forward in forwards[:ahead]:
        program.received("input_tensor", "input", forward)
        program.forward(forward)
        program.give_back(forward)
    for forward in forwards[ahead : ahead + 1]:
        program.received("input_tensor", "input", forward)
    for number, backward in enumerate(backwards):
        forward_of = forwards[ahead + number : ahead + number + 1]
        for forward in forward_of:
            program.forward(forward)
        if not forward_of:
            program.pop(backward)
        program.take("output_tensor_grad", Item("seed", backward.chunk, backward.batch))
        for forward in forward_of:
            program.give_back(forward)
            program.pop(backward)
        program.backward(backward)
        program.bind("input_tensor_grad", program.held_by("made"))
        program.bind("made", None)
        following = forwards[ahead + number + 1 : ahead + number + 2]
        for forward in following:
            program.received("input_tensor", "input", forward)
        if forward_of and not following:
            program.bind("input_tensor", None)


def _interleaved(
    program: _Program, forwards: Sequence[Action], backwards: Sequence[Action], ahead: int
) -> None:
    """forward_backward_pipelining_with_interleaving, exchanges overlapped between the two."""
    total = len(forwards)
    program.received("first", "input", forwards[0])
    program.bind("first", None)
    for number in range(ahead):
        program.forward(forwards[number])
        for following in forwards[number + 1 : number + 2]:
            program.received("input_tensor", "input", following)
        program.give_back(forwards[number])
    program.received("bwd_recv_buffer", "seed", backwards[0])
    for number in range(total - ahead):
        _both(program, forwards[ahead + number :], backwards[number:])
    program.bind("bwd_recv_buffer", None)
    if total > ahead:
        program.give_back(forwards[-1])
        flushed = backwards[total - ahead]
        program.bind("recv_next_wait_handle", Item("seed", flushed.chunk, flushed.batch))
    for number in range(total - ahead, total):
        program.backward(backwards[number])
        program.bind("input_tensor_grad", program.held_by("made"))
        program.bind("made", None)
        for following in backwards[number + 1 : number + 2]:
            program.received("output_tensor_grad", "seed", following)


def _both(program: _Program, forwards: Sequence[Action], backwards: Sequence[Action]) -> None:
    """A forward and a backward; the next input comes between them, the next gradient after them."""
    program.forward(forwards[0], "forward_output_tensor")
    for following in forwards[1:2]:
        program.received("fwd_recv_buffer", "input", following)
        program.bind("fwd_recv_buffer", None)
    program.backward(backwards[0])
    for next_backward in backwards[1:2]:
        program.received("bwd_recv_buffer", "seed", next_backward)
        program.bind("bwd_recv_buffer", None)
    for name in ("send_prev_wait_handle", "input_tensor_grad"):
        program.bind(name, program.held_by("made"))
    program.bind("made", None)
    is_sent = forwards[0].chunk < program.chunks - 1
    program.bind("output_tensor", program.held_by("forward_output_tensor") if is_sent else None)
    program.bind("forward_output_tensor", None)
    if len(forwards) > 1:  # before the next forward
        program.give_back(forwards[0])
