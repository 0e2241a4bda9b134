"""The end of a branch: its dropout, and the sum with the residual stream.

Shapes: (b, s, h) throughout. The sum keeps nothing; dropout keeps its mask.
Checked by: oracle/test_torch_events.py, oracle/test_hf_families.py.
"""

from __future__ import annotations

from memcalc.engine.aten.pointwise import add, dropout
from memcalc.engine.build import Build
from memcalc.engine.tensors import Tensor


def drop(build: Build, x: Tensor, op: str, p: float | None = None) -> Tensor:
    """Dropout on a branch as the op `op`, where there is any; p: the model's residual dropout."""
    rate = build.config.residual_dropout if p is None else p
    if not rate or not build.kernels.use_dropout:
        return x
    build.at(op, "residual")
    return dropout(x, rate)


def residual(build: Build, x: Tensor, branch: Tensor, op: str) -> Tensor:
    """x + branch: keeps nothing."""
    build.at(op, "residual")
    return add(x, branch)
