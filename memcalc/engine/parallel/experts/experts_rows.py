"""FSDP2 groups with experts cut along their rows: what that adds to a gather and to a reduction.

Where there are more ranks than experts, cutting the experts would leave ranks without any; each weight
(E, out, in) is cut along out instead. PyTorch gathers and reduces along the first dim, so a gather puts
every such parameter together in a second tensor, and a reduction cuts every such gradient into a copy.
Source: PyTorch 2.13, torch/distributed/fsdp/_fully_shard/_fsdp_collectives.py
(foreach_all_gather_copy_out, foreach_reduce); torchtitan, models/llama4/parallelize.py.
Checked by: oracle/test_expert_parallel.py, event for event.
"""

from __future__ import annotations

from typing import Any

from memcalc.engine.parallel.data.fsdp2_timeline import Group, _drop, _Live
from memcalc.engine.sizes import ZERO
from memcalc.engine.states import names_expert
from memcalc.engine.tensors import Shape, Tensor


def rows_first(group: Group) -> Group:
    """A group whose experts' shapes begin with the dim that is cut."""
    return Group(
        group.block, tuple((name, _turned(name, shape)) for name, shape in group.parameters)
    )


def _turned(name: str, shape: Shape) -> Shape:
    return (shape[1], shape[0], *shape[2:]) if names_expert(name) else shape


class RowsLive(_Live):
    """A timeline whose experts are cut along their rows."""

    def _cut(self, group: Group) -> bool:
        """Whether a group has parameters that are."""
        return self.plan.ranks > 1 and any(names_expert(name) for name, _ in group.parameters)

    def _copy_out(self, group: Group, defer: bool) -> None:
        held = self.held[group.block]
        if held.whole or not self._cut(group):
            super()._copy_out(group, defer)
            return
        plan, apart = self.plan, []
        with self._within("unshard", group):
            for (name, _), size in zip(group.parameters, group.padded(plan.ranks), strict=True):
                whole = (size * plan.ranks,)
                held.whole.append(self.tape.empty("unsharded", whole, plan.compute))
                if names_expert(name):
                    apart.append(self.tape.empty("empty_like", whole, plan.compute))
            del apart
        if defer:
            self.previous = held.gathered
        held.gathered = None

    def _reduce(self, group: Group) -> None:
        if not self._cut(group):
            super()._reduce(group)
            return
        plan = self.plan
        having = [name for name, _ in group.parameters if self.tape.leaves[name].grad is not None]
        sizes, gradients = self._gradients(group)
        _drop(self.held[group.block].whole)
        self.reduced = None
        total = sum(sizes, ZERO)
        with self._within("reduce_scatter", group):
            alive = self._copied_rows(having, gradients)
            reduced = self.tape.empty("reduce_scatter_input", (total * plan.ranks,), plan.stored)
            gradients.clear()
            output = self.tape.empty("reduce_scatter_output", (total,), plan.stored)
            alive.clear()
        if plan.replicas > 1:
            self.summed[group.block] = output
        if not self.build.has_gradients:
            self.tape.gradients.append(output)
        self.reduced = reduced

    def _copied_rows(self, names: list[str], gradients: list[Tensor]) -> dict[str, Any]:
        """Replace experts' gradients by copies; what PyTorch's loop variables hold after it.

        In a loop over enumerate(zip(...)) CPython's zip keeps every second pair until the pair after
        the next is made.
        """
        alive: dict[str, Any] = {}
        for i, name in enumerate(names):
            alive["gradient"] = gradients[i]
            if i % 2 == 0:
                alive["zip"] = gradients[i]
            if names_expert(name):
                alive["chunks"] = gradients[i]
                shape = (gradients[i].numel,)
                gradients[i] = self.tape.empty("cat", shape, self.plan.compute)
        alive.pop("zip", None)
        return alive
