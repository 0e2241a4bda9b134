"""A block under torch.compile: one node of the outer graph, with two programs for all it does.

The block's own description is traced on a RegionTape, forward and backward; what is stored, kept and
made in place follows from the joint graph (`compiled_plan`). Forward then allocates the stored values
in order and hands over the kept ones; backward takes each up and gives it back after its last use.
Outside the block everything stays eager. The incoming gradient lives until backward returns.
Checked by: oracle/test_compiled.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from memcalc.engine.autograd import Grads, Node, backward
from memcalc.engine.blocks.compiled_graph import RegionTape
from memcalc.engine.blocks.compiled_plan import Program, Step, program_of
from memcalc.engine.blocks.compiled_recompute import with_recomputation
from memcalc.engine.blocks.embedding import Context
from memcalc.engine.build import Build
from memcalc.engine.ledger import Kept
from memcalc.engine.tensors import Tape, Tensor

Block = Callable[[Build, Tensor, Context], Tensor]


class _Held:
    """What a compiled forward keeps: the graph, its backward program, the kept values' tensors.

    Autograd and checkpoint frames handle it as one saved tensor.
    """

    def __init__(
        self, region: RegionTape, program: Program, gradients: Grads, tensors: dict[int, Tensor]
    ) -> None:
        self.region, self.program = region, program
        self.gradients, self.tensors = gradients, tensors

    def detach(self) -> _Held:
        """Itself: a checkpoint frame hands out saved tensors detached."""
        return self


def compiled_block(
    block: Block,
    build: Build,
    x: Tensor,
    context: Context,
    keep: frozenset[str] | None = None,
) -> Tensor:
    """block(build, x, context) as torch.compile runs it: (b, s, h) in and out.

    keep: operators whose outputs a checkpoint inside the compiled code keeps; None: no checkpoint.
    """
    outer, casts = build.tape, build.casts
    region = RegionTape(outer, build.kernels.long_rows)
    inside = region.enter(x)
    build.tape = region
    build.casts = {} if build.kernels.autocast else None
    try:
        out = block(build, inside, tuple(map(region.enter, context)))
    finally:
        build.tape, build.casts = outer, casts
    inputs = [inside, *region.leaves.values()]
    gradients = _trace_backward(region, out, inputs)
    made = tuple(g.storage.index for g in gradients if g is not None)
    order = None if keep is None else with_recomputation(region.graph, keep)
    program = program_of(region.graph, out.storage.index, made, order)
    return _run_forward(region, program, out, inputs, gradients)


def _trace_backward(region: RegionTape, out: Tensor, inputs: list[Tensor]) -> Grads:
    """The gradient of each input as the graph computes it; none where none is wanted."""
    if out.node is None:
        return [None] * len(inputs)
    backward(out, region.tangent(out.shape, out.dtype))
    return [tensor.grad for tensor in inputs]


def _run_forward(
    region: RegionTape, program: Program, out: Tensor, inputs: list[Tensor], gradients: Grads
) -> Tensor:
    """Allocate what forward stores; the node that keeps what backward reads, and the result."""
    tape = region.outer
    outside = [region.entered[tensor.storage.index] for tensor in inputs]
    tensors = dict(region.entered)
    region.entered.clear()  # the region is part of a reference cycle: it must hold nothing outside
    if not tape.recomputing:
        for key, record in region.records.items():
            tape.records.setdefault(key, record)
    _play(region, tape, program.forward, tensors)
    result = _as_seen(out, tensors.pop(out.storage.index))
    if not tape.grad_enabled or not any(tensor.requires_grad for tensor in outside):
        return result
    node = Node(tape, _compiled_backward, tuple(outside))
    kept = {index: tensors[index] for index in program.kept if index in tensors}
    if out.storage.index in program.kept:
        kept[out.storage.index] = result.detach()
    tensors.clear()
    _enter_ledger(region, tape, kept)
    held = _Held(region, program, gradients, kept)
    del kept
    assert node.saved is not None
    hook = tape.packing[-1] if tape.packing else None
    node.saved.append((hook, held if hook is None else hook.pack(held)))  # type: ignore[arg-type]
    return node.output(result)


def _compiled_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    held: _Held = saved[0]
    region, tensors = held.region, held.tensors
    tangent = grads[0]
    assert tangent is not None
    tape = tangent.tape
    incoming = next(v.index for v in region.graph if v.backward)
    tensors[incoming] = tangent
    _play(region, tape, held.program.backward, tensors)
    results: Grads = [
        None if inside is None else _as_seen(inside, tensors[inside.storage.index])
        for inside in held.gradients
    ]
    tensors.clear()
    return results


def _as_seen(inside: Tensor, stored: Tensor) -> Tensor:
    """A stored value with the shape and layout the graph's tensor has."""
    return stored.view_as(inside.shape, inside.order, inside._strides)


def _play(
    region: RegionTape, tape: Tape, steps: tuple[Step, ...], tensors: dict[int, Tensor]
) -> None:
    """Allocate and give back as the steps say, on the outer tape."""
    for step in steps:
        value = region.graph[step.value]
        tape.at(value.op)
        if step.over >= 0:
            del tensors[step.over]
        for ran in (*value.ran, *step.ran):
            tape.ran(ran, value.recomputed)
        tape.covered(value.name)
        tensors[step.value] = tape.empty(value.name, value.shape, value.dtype, value.order)
        for index in step.ends:
            del tensors[index]


def _enter_ledger(region: RegionTape, tape: Tape, kept: dict[int, Tensor]) -> None:
    """Turn the rows' kept values from the graph's numbers to the tape's storages.

    A value kept to compute others anew counts to the op that makes it.
    """
    if tape.recomputing:
        return
    noted = {index for record in region.records.values() for index in record.kept}
    for index in kept.keys() - noted:
        value = region.graph[index]
        if value.kind != "input":
            record = region.records[tape.block, value.op]
            record.kept[index] = Kept(value.size, value.name, "both")
    for record in region.records.values():
        record.kept = {
            kept[index].storage.index: Kept(known.size, known.made_by, known.needed_by)
            for index, known in record.kept.items()
            if index in kept and kept[index].storage.index >= 0
        }
