"""Parameters of a block under a fine-tuning method: which of the model's own train, and those it adds.

Checked by: oracle/test_peft.py, unit/test_adapters.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memcalc.engine.tensors import Shape, Tensor

if TYPE_CHECKING:
    from memcalc.engine.build import Build


def trains(build: Build, name: str) -> bool:
    """Whether the model's own parameter of this name needs a gradient."""
    adapter = build.kernels.adapter
    if adapter is None:
        return True
    if adapter.method == "bitfit":
        return name.endswith(".bias")
    if adapter.method == "freeze":
        chosen = not adapter.parts or name.rpartition(".")[0] in adapter.parts
        return build.tape.block >= 0 and build.kind.trains and chosen
    return False


def is_rescaled(build: Build, name: str) -> bool:
    """Whether a linear of this name has a vector of IA3."""
    adapter = build.kernels.adapter
    return adapter is not None and adapter.method == "ia3" and name in adapter.targets


def added(build: Build, name: str, shape: Shape, learns: bool = True) -> Tensor:
    """A parameter that the method adds to this block, or outside the blocks."""
    tape, adapter = build.tape, build.kernels.adapter
    assert adapter is not None
    key = name if tape.block < 0 else f"layers.{tape.block}.{name}"
    leaf = tape.leaf(key, shape, adapter.dtype, learns)
    if not tape.recomputing:
        tape.records[tape.block, tape.op].params[name] = leaf.numel
    return leaf
