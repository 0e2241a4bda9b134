"""What schedules are made of: an action of a rank, and the shape of a pipeline.

Checked by: oracle/test_pipeline_schedules.py.
"""

from __future__ import annotations

from typing import NamedTuple


class Action(NamedTuple):
    """One chunk's work on one micro-batch.

    kind: "F" forward, "B" backward, "I" and "W" its halves (gradients of inputs, of weights).
    """

    kind: str
    chunk: int
    batch: int


class Pipe(NamedTuple):
    """Stages, chunks a rank holds, micro-batches of a step."""

    pp: int
    vpp: int
    batches: int

    @property
    def rounds(self) -> int:
        """Rounds of the interleaved schedule: each takes its micro-batches through every chunk."""
        return max(1, self.batches // self.pp)

    @property
    def per_round(self) -> int:
        """Micro-batches of a round: the stages, or more where that does not divide."""
        return self.batches // self.rounds
