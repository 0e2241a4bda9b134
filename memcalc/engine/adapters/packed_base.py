"""A frozen base whose linears are packed: what one GPU holds of each leaf, trained leaves beside it.

Bytes are those of `engine/quantised.py`, which sums a format's parts (codes, scales, tables) for every
leaf. Checked by: oracle/test_qlora.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from memcalc.engine.parallel.data.ddp import Ddp
from memcalc.engine.parallel.deepspeed.deepspeed import DeepSpeed
from memcalc.engine.parallel.strategy import Strategy, as_packed
from memcalc.engine.plan import Plan
from memcalc.engine.quantised import weights_of_plan
from memcalc.engine.tensors import Tensor
from memcalc.inputs.weights import WeightFormat


@dataclass(frozen=True)
class PackedBase(Strategy):
    """One GPU with a packed base. packed: (leaf, bytes) of what the format packs, sorted."""

    packed: tuple[tuple[str, int], ...]

    def parameter(self, leaf: Tensor) -> Tensor:
        """The bytes of a packed leaf as one tensor; any other leaf as it is."""
        return as_packed(leaf, self.packed)


def packed_base(plan: Plan, fmt: WeightFormat) -> Strategy:
    """The strategy of a plan whose base is held in a format. Raises ConfigError where it does not fit.

    Ranks that split the batch have the base whole: theirs is the plan's own, told what is packed.
    """
    base = plan.kernels.param_dtype
    weights = weights_of_plan(plan, fmt, base)
    found = {one.name: one.resident_bytes for one in weights.leaves if one.packing != base}
    packed = tuple(sorted(found.items()))
    if isinstance(plan.strategy, Ddp | DeepSpeed):
        return replace(plan.strategy, packed=packed)
    return PackedBase(packed)
