"""Fine-tuning of the harness's decoder: adapters beside its linears, and which parameters train.

As PEFT does it on transformers' models, so that `verify` runs such steps: LoRA beside the linears of the
blocks that are named, freeze:N (the last N blocks train), BitFit (biases train).
Checked by: oracle/test_harness_peft.py.
"""

from __future__ import annotations

from torch import nn

from memcalc.engine.adapters.svd import RANK
from memcalc.engine.kernels import Adapter, BlockKind
from memcalc.engine.plan import Plan
from memcalc.harness.model.casting import DTYPES, Linear, LowRank
from memcalc.harness.model.packed import Packed


def tune(model: nn.Module, plan: Plan, kinds: tuple[BlockKind, ...]) -> None:
    """Give a decoder the adapters of its plan, and freeze what does not train; nothing without a method.

    model: its blocks are `layers`. Whoever calls this makes new parameters in the adapters' dtype.
    """
    adapter, peft = plan.kernels.adapter, plan.resolved.setup.peft
    if adapter is None or peft is None:
        return
    model.requires_grad_(False)
    dtype = DTYPES[plan.kernels.compute_dtype]
    layers = model.get_submodule("layers")
    for kind, block in zip(kinds, layers.children(), strict=True):
        for path, module in list(block.named_modules()):
            name = path.rpartition(".")[2]
            if not isinstance(module, Linear):
                continue
            if adapter.quantised is not None and name != "router":
                assert peft.packed is not None
                shape = (module.out_features, module.in_features)
                module.packed = Packed(shape, peft.packed, dtype)
                module.register_parameter("weight", None)
            if name in adapter.targets:
                size = (module.in_features, module.out_features)
                module.adapter = LowRank(
                    size, plan.values[RANK], adapter.dtype, peft.dropout, plan.kernels
                )
                module.adapter.op = f"{name}.{adapter.method}"
        _unfreeze(block, adapter, kind)
    if adapter.method == "bitfit":
        for path, parameter in model.named_parameters():
            parameter.requires_grad_(path.endswith(".bias"))


def _unfreeze(block: nn.Module, adapter: Adapter, kind: BlockKind) -> None:
    """What trains of a block: its adapters; with freeze:N all of one of the last blocks, or parts of it."""
    for path, parameter in block.named_parameters():
        names = path.split(".")
        if adapter.method == "freeze":
            parameter.requires_grad_(
                kind.trains and (not adapter.parts or names[-2] in adapter.parts)
            )
        elif "adapter" in names:
            parameter.requires_grad_(True)
