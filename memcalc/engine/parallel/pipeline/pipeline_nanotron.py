"""nanotron's pipeline engines: how long a rank keeps what it sends and receives.

From huggingface/nanotron 0.5, parallel/pipeline_parallel/{engine,state,functional,block}.py:
- an activation that comes is a new tensor, and lives until its backward is over;
- in 1F1B's warm-up, and throughout AFAB, an activation is sent as soon as the forward is over; the
  loop's variable `send_activation` holds the last one;
- in the steady state it waits in a queue until its backward begins, which sends it and then receives
  the gradient, a new tensor;
- a gradient for the stage before waits in a queue until the next exchange.
Checked by: unit/test_nanotron_layout.py.
"""

from __future__ import annotations

from memcalc.engine.parallel.pipeline.actions import Pipe
from memcalc.engine.parallel.pipeline.pipeline_program import Item, Program, Step
from memcalc.engine.parallel.pipeline.schedules import rank_actions


def nanotron_step(schedule: str, pipe: Pipe, rank: int) -> Step:
    """A rank's step under "1f1b" or "gpipe", which nanotron calls all-forward-all-backward."""
    program = Program(pipe)
    actions = rank_actions(schedule, pipe, rank)
    ahead = next(i for i, action in enumerate(actions) if action.kind == "B")
    at_once = ahead if schedule == "gpipe" else min(ahead, pipe.pp - 1 - rank)
    for action in actions:
        kind, chunk, batch = action
        if kind == "F":
            program.take(("input", batch), Item("input", chunk, batch))
            program.bind("to send back", None)
            program.do(action)
            program.bind("sent" if batch < at_once else "to send", Item("stream", chunk, batch))
            continue
        program.take("received", Item("seed", chunk, batch))
        program.bind("to send", None)
        program.do(action)
        program.bind("received", None)
        program.bind(("input", batch), None)
        program.bind("to send back", Item("gradient", chunk, batch))
    return program.end()
