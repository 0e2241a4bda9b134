"""Token rows on their way to the ranks of their experts and back, where ep ranks share the experts.

Every rank's R_s routed rows, sorted by expert, are exchanged for the R rows of its own e experts, which
are put in the order of experts (they come rank by rank); results go the way back. How many rows each
expert has of each rank is exchanged first; the host reads it. Nothing is padded or dropped.
Symbols: E experts in all, e on this rank, h hidden; R is R_s times the imbalance.
Source: torchtitan, torchtitan/distributed/expert_parallel.py, models/common/moe/utils.py.
Checked by: oracle/test_expert_parallel.py, against memcalc/harness/ranks/experts.py.
"""

from __future__ import annotations

from typing import Any

from memcalc.engine.aten.routing import take_rows
from memcalc.engine.autograd import Grads, Node, node_for
from memcalc.engine.build import Build
from memcalc.engine.ledger import note_collective
from memcalc.engine.sizes import ONE, Size, number
from memcalc.engine.tensors import Tensor, bytes_of

AXIS = "ep"


def is_spread(build: Build) -> bool:
    """Whether several ranks share the experts."""
    return "e" in build.dims


def own_experts(build: Build) -> Size:
    """Experts of this rank."""
    return build.dims.get("e", build["E"])


def sent_rows(build: Build) -> Size:
    """Routed rows of this rank's own tokens."""
    return build.dims.get("R_s", build["R"])


def dispatch(build: Build, rows: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows (R_s, h) and how many each of E experts has: those of this rank's experts, and their order."""
    tape = build.tape
    note_collective(tape, "all_to_all", bytes_of(counts.shape, counts.dtype), AXIS)
    from_ranks = tape.empty("all_to_all_single", counts.shape, counts.dtype)
    for _ in ("sent", "received"):
        on_host = tape.empty("sum.dim_IntList", (number(build.kernels.expert_ranks),), "int64")
        del on_host
    rows = _exchanged(rows, build["R"])
    order, counts = _by_expert(build, from_ranks)
    rows = take_rows(rows, order)
    return rows, counts, order


def combine(build: Build, rows: Tensor, order: Tensor) -> Tensor:
    """Result rows as they came (R, h), sent back where they came from (R_s, h)."""
    build.at("combine", "mlp")
    as_came = _put(build, rows, order)
    return _exchanged(as_came, build["R_s"])


def _by_expert(build: Build, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Where the rows of each expert are (R), and how many it has; from counts by rank and expert (E)."""
    tape, e = build.tape, own_experts(build)
    every, rows = (build["E"],), (build["R"],)
    total = tape.empty("cumsum", every, "int64")
    starts = tape.empty("sub.Tensor", every, "int64")
    del total
    totals = tape.empty("sum.dim_IntList", (e,), "int64")
    lengths = counts
    if e is not ONE:  # turned from ranks by experts to experts by ranks
        lengths = tape.empty("clone", every, counts.dtype)
        starts = tape.empty("clone", every, "int64")
    ends = tape.empty("cumsum", every, "int64")
    begins = tape.empty("sub.Tensor", every, "int64")
    shifts = tape.empty("sub.Tensor", every, "int64")
    del begins
    places = tape.empty("arange", rows, "int64")
    chunk = tape.empty("searchsorted", rows, "int64")
    shift = tape.empty("index.Tensor", rows, "int64")
    order = tape.empty("add.Tensor", rows, "int64")
    del shift, starts, lengths, ends, shifts, places, chunk
    return order, totals


def _exchanged(x: Tensor, rows: Size) -> Tensor:
    """The rows other ranks send for those of x; gradients go the other way."""
    node = node_for(_exchanged_backward, x)
    note_collective(x.tape, "all_to_all", bytes_of(x.shape, x.dtype), AXIS)
    out = x.tape.empty("all_to_all_single", (rows, x.shape[1]), x.dtype)
    return node.output(out) if node else out


def _exchanged_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    note_collective(gradient.tape, "all_to_all", bytes_of(gradient.shape, gradient.dtype), AXIS)
    return [gradient.tape.empty("all_to_all_single", node.inputs[0][0], gradient.dtype)]


def _put(build: Build, rows: Tensor, order: Tensor) -> Tensor:
    """A new tensor with rows put at their places; keeps the places."""
    node = node_for(_put_backward, rows)
    if node:
        node.save(order, "dgrad")
    out = build.tape.empty("new_empty", rows.shape, rows.dtype)
    build.tape.in_place("index_put_", rows)  # its rows, written into the new tensor
    return node.output(out) if node else out


def _put_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    return [gradient.tape.empty("index.Tensor", node.inputs[0][0], gradient.dtype)]
