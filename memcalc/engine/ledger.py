"""OpRecord: one row of the ledger, filled in while a block's description runs.

A row has the op's parameters, what it reads and makes, what autograd keeps of it and for whose
gradient (`dgrad`: the input's, `wgrad`: the weight's, `both`), matmul FLOPs forward, dgrad, wgrad,
and bytes moved. The rows are read off the same run that gives the timeline, so they cannot differ.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from memcalc.engine.sizes import ONE, ZERO, Size
from memcalc.engine.tensors import Shape, Tape, Tensor


@dataclass(eq=False)
class Kept:
    """A tensor autograd keeps: its bytes, the primitive that made it, whose gradient needs it."""

    size: Size
    made_by: str
    needed_by: str


class Collective(NamedTuple):
    """One exchange between the ranks of an axis (tp, dp, ...), as a layer's op makes it.

    kind: all_reduce | all_gather | reduce_scatter | all_to_all | send. size: bytes of the whole: what
    is summed, what is gathered, what is scattered; what one rank sends. direction: forward | backward |
    recompute. beside: the work of the same op that it runs beside, which is that of its direction, or
    of backward dgrad or wgrad alone; with "/n" one of as many equal parts as there are ranks.
    """

    kind: str
    size: Size
    axis: str
    direction: str = "forward"
    beside: str = ""


@dataclass(eq=False)
class OpRecord:
    """One op of one block (block -1: outside the blocks)."""

    block: int
    name: str
    part: str
    params: dict[str, Size] = field(default_factory=dict)
    kept: dict[int, Kept] = field(default_factory=dict)
    flops: dict[str, Size] = field(default_factory=dict)
    gemms: list[tuple[Size, Size, Size]] = field(default_factory=list)  # (m, n, k), forward
    input_shape: Shape = ()
    output_shape: Shape = ()
    traffic: dict[str, Size] = field(default_factory=dict)  # bytes moved, by direction
    collectives: list[Collective] = field(default_factory=list)

    def note_saved(self, tensor: Tensor, needed_by: str) -> None:
        """Enter a kept tensor once per storage; storages from before the step do not count."""
        index = tensor.storage.index
        if index < 0:
            return
        known = self.kept.get(index)
        if known is None:
            tape = tensor.tape
            self.kept[index] = Kept(tape.sizes[index], tape.names[index], needed_by)
        elif known.needed_by != needed_by:
            known.needed_by = "both"

    def add_flops(self, kind: str, flops: Size) -> None:
        """Add matmul FLOPs of one kind."""
        self.flops[kind] = self.flops.get(kind, ZERO) + flops

    def note_result(self, shape: Shape) -> None:
        """The op's result is the last tensor it makes forward that may be one."""
        if self._is_result(shape):
            self.output_shape = shape

    def add_traffic(self, direction: str, moved: Size) -> None:
        """Add bytes a kernel read and wrote."""
        self.traffic[direction] = self.traffic.get(direction, ZERO) + moved

    def _is_result(self, shape: Shape) -> bool:
        """Whether a new tensor may be the op's result: statistics and RNG state have fewer dims."""
        if not shape:  # a scalar on the way
            return False
        narrow = shape[-1] is ONE and len(shape) > 1
        return len(shape) >= len(self.output_shape) and not (narrow and self.output_shape)

    @property
    def num_params(self) -> Size:
        """Parameter elements of this op."""
        total = ZERO
        for size in self.params.values():
            total = total + size
        return total


def note_collective(tape: Tape, kind: str, size: Size, axis: str, beside: str = "") -> None:
    """Enter an exchange between ranks into the row of the op at work; see Collective."""
    record = tape.records.get((tape.block, tape.op))
    if record is not None:
        direction = "recompute" if tape.recomputing else tape.phase
        direction = "forward" if direction == "loss" else direction
        record.collectives.append(Collective(kind, size, axis, direction, beside))


def note_for_backward(tape: Tape, kind: str, size: Size, axis: str) -> None:
    """Enter, while forward runs, an exchange that only backward makes; it allocates nothing there."""
    record = tape.records.get((tape.block, tape.op))
    if record is not None and not tape.recomputing:
        record.collectives.append(Collective(kind, size, axis, "backward"))
