"""Merging LoRA into the model before it is saved: one matrix's change at a time.

PEFT makes B A in the adapter's dtype, then that times a number, and adds it to the weight in place: two
matrices as large as a weight beside it. DoRA scales by norms and takes more; a packed base would have to
be packed anew.
Source: PEFT 0.21.2, tuners/lora/layer.py (merge, get_delta_weight). Checked by: oracle/test_saving.py.
"""

from __future__ import annotations

from memcalc.engine.dtypes import ITEMSIZE
from memcalc.engine.plan import Plan
from memcalc.engine.sizes import product
from memcalc.engine.states import all_leaves
from memcalc.engine.tensors import Tensor
from memcalc.errors import ConfigError, NotInThisVersionError

#: Changes alive at once: the product, and the product times a number.
_COPIES = 2


def merging_bytes(plan: Plan) -> int:
    """The most that merging takes beside the model. Raises where there is nothing to merge so."""
    peft, adapter = plan.resolved.setup.peft, plan.kernels.adapter
    if peft is None or adapter is None or peft.method not in ("lora", "qlora"):
        raise ConfigError(
            f"save-as: got merged with {'no peft' if peft is None else peft.method}; rule: of LoRA; "
            "nearest valid: full"
        )
    if peft.packed is not None:
        raise NotInThisVersionError(
            f"save-as: got merged with a base in {peft.packed}, not in this version; nearest valid: adapter"
        )
    if plan.parallel.zero == 3:
        raise NotInThisVersionError(
            "save-as: got merged with parameters cut over ranks, not in this version; nearest valid: "
            "adapter, or full"
        )
    sizes = [product(leaf.shape).value(plan.values) for leaf in _merged(plan)]
    return _COPIES * max(sizes) * ITEMSIZE[adapter.dtype]


def _merged(plan: Plan) -> list[Tensor]:
    """The weights that have low-rank matrices beside them."""
    leaves = all_leaves(*plan.structure(plan.keeps_gradients))
    first = ".lora_A.weight"
    adapted = {leaf.name.replace(first, ".weight") for leaf in leaves if leaf.name.endswith(first)}
    return [leaf for leaf in leaves if leaf.name in adapted]
