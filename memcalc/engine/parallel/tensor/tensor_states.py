"""What a rank of tensor parallelism keeps between steps, where each holds the states of its parts whole.

Parameters are DTensors: a rank's part, or all of what is not split. An embedding's gradient stays whole
on every rank, with the rows of all, and so does what an optimizer copies of it. A norm's gradient is a
term of a sum over the ranks, which is made once a step; gradients that are zeroed instead of dropped
have been summed already, so that each micro-batch's must be before it is added.
Source: PyTorch 2.13, torch/csrc/autograd/functions/accumulate_grad.h and torch/distributed/tensor;
memcalc/harness/ranks/split_layers.py (sum_partial_gradients).
Checked by: oracle/test_tensor_parallel.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from memcalc.engine.injectors import Hooks, Injector
from memcalc.engine.optimizer import gradient_shape
from memcalc.engine.parallel.strategy import Strategy, held
from memcalc.engine.parallel.tensor.dtensor import all_reduce
from memcalc.engine.tensors import Tensor

if TYPE_CHECKING:
    from memcalc.engine.build import Build
    from memcalc.engine.plan import Plan


@dataclass(frozen=True)
class TensorParts(Strategy):
    """Ranks that share every layer and nothing else. zeroed: gradients are kept and set to zero."""

    zeroed: bool = False

    def injectors(self, plan: Plan) -> tuple[Injector, ...]:
        """Sums of single gradients where the gradients that exist are sums."""
        return (SummedAsTheyCome(),) if self.zeroed else ()

    def gradient(self, leaf: Tensor) -> Tensor:
        """As large as the leaf, the embedding's as large as that of all ranks."""
        return held(leaf, gradient_shape(leaf))


class SummedAsTheyCome(NamedTuple):
    """Sums a gradient over the ranks before it is added to one that has been summed."""

    def start(self, build: Build) -> Hooks:
        """A hook on every gradient that is added to one from before."""

        def ready(leaf: Tensor) -> None:
            if build.has_gradients and leaf.placed and leaf.placed.partial:
                all_reduce(leaf, leaf.shape)

        return Hooks(gradient_ready=ready)
