"""Strategy: how the ranks that split the batch hold a model's states, and what that moves in memory.

A strategy says of each parameter what this rank keeps of it (the parameter itself, its gradient, what
the optimizer steps over), which buffers exist for the whole run, and which injectors put its gathers
and reductions on the timeline. Strategies are hashable: they are part of a structure's key.
`Whole` is every rank with everything; the others are one module each in this folder, chosen by
`plan.strategy_for`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, NamedTuple, Protocol

from memcalc.engine.injectors import Injector
from memcalc.engine.kernels import Kernels
from memcalc.engine.tensors import Shape, Tensor

if TYPE_CHECKING:
    from memcalc.engine.plan import Plan


class Strategy(Hashable, Protocol):
    """What a way of data parallelism decides about one rank's memory.

    parameter, gradient: the tensor this rank keeps of a leaf's weight and of its gradient between
    steps. optimized: what the optimizer steps over, made of all leaves in registration order.
    fixed_bytes: buffers that live as long as the run, by category of the breakdown. kernels: the
    kernels a block runs with (a sharding engine casts weights itself instead of autocast).
    persistent_gradients: gradients exist before the first micro-batch and are never released.
    """

    @property
    def persistent_gradients(self) -> bool: ...

    def kernels(self, kernels: Kernels) -> Kernels: ...

    def injectors(self, plan: Plan) -> tuple[Injector, ...]: ...

    def parameter(self, leaf: Tensor) -> Tensor: ...

    def gradient(self, leaf: Tensor) -> Tensor: ...

    def optimized(self, leaves: list[Tensor]) -> list[Tensor]: ...

    def fixed_bytes(self, plan: Plan) -> Mapping[str, int]: ...


class Whole(NamedTuple):
    """One GPU, or ranks that each hold everything: nothing is divided, nothing is injected."""

    @property
    def persistent_gradients(self) -> bool:
        return False

    def kernels(self, kernels: Kernels) -> Kernels:
        """As the setup has them."""
        return kernels

    def injectors(self, plan: Plan) -> tuple[Injector, ...]:
        """None."""
        return ()

    def parameter(self, leaf: Tensor) -> Tensor:
        """The leaf itself."""
        return leaf

    def gradient(self, leaf: Tensor) -> Tensor:
        """As large as the leaf."""
        return leaf

    def optimized(self, leaves: list[Tensor]) -> list[Tensor]:
        """Every parameter."""
        return leaves

    def fixed_bytes(self, plan: Plan) -> Mapping[str, int]:
        """None."""
        return {}


def held(leaf: Tensor, shape: Shape | None = None, dtype: str | None = None) -> Tensor:
    """A tensor that exists beside the step, under the leaf's name: a shard, a copy, a flat buffer."""
    copy = leaf.tape.external(leaf.shape if shape is None else shape, dtype or leaf.dtype)
    copy.name = leaf.name
    return copy
