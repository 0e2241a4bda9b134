"""Saving a checkpoint: what the GPU and the host hold while a model's state dict is made and written.

A state dict refers to the tensors there are; torch.save copies one storage after the other to the host.
Under FSDP2 a full state dict gathers every parameter from its shards: one after the other where each goes
to the host at once (cpu_offload), all of them at the end otherwise; tensor parallel ones over their ranks
too, twice where they are cut along columns (gathered, then put together). ZeRO-3 gathers a module's
parameters and copies them to rank 0's host (stage3_gather_16bit_weights_on_model_save). Sharded saves
(torch.distributed.checkpoint, Megatron, DeepSpeed's own files, pipelines' stages) gather nothing.
Source: torch 2.13, serialization.py (_save), distributed/_state_dict_utils.py (_iterate_state_dict),
distributed/checkpoint/filesystem.py; accelerate 1.15, utils/fsdp_utils.py (_get_model_state_dict);
DeepSpeed 0.18.2, runtime/engine.py (_zero3_consolidated_16bit_state_dict).
Checked by: oracle/test_saving.py; ZeRO-3 by reading, unit/test_phases_divided.py.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from memcalc.engine.dtypes import ITEMSIZE
from memcalc.engine.parallel.data.fsdp2 import Fsdp2, part_shape
from memcalc.engine.parallel.data.offload_fsdp2 import OffloadedFsdp2
from memcalc.engine.parallel.deepspeed.deepspeed import DeepSpeed
from memcalc.engine.parallel.tensor.tensor_layers import ROWS
from memcalc.engine.phases.files import model_leaves
from memcalc.engine.phases.merging import merging_bytes
from memcalc.engine.phases.standing import largest_tensor, standing
from memcalc.engine.plan import Plan
from memcalc.engine.sizes import product
from memcalc.engine.states import bytes_of_held
from memcalc.engine.tensors import Tensor
from memcalc.errors import NotInThisVersionError, unknown

#: What is written: everything by one rank, gathered on the GPUs or on its host; parts by all; less.
FORMS: Final = ("full", "full-gpu", "sharded", "adapter", "merged")


class Saving(NamedTuple):
    """Requested bytes while a model's state dict is written between two steps.

    gathered_bytes: of parameters gathered from other ranks, or of changes merged into them; host_bytes:
    of copies on the host at the most at once, on the rank that writes. exact: held against PyTorch.
    """

    standing_bytes: int
    gathered_bytes: int
    host_bytes: int
    form: str = "full"
    exact: bool = True

    @property
    def peak_bytes(self) -> int:
        return self.standing_bytes + self.gathered_bytes


def saving(plan: Plan, form: str = "full") -> Saving:
    """Memory while a plan's model is written in one of FORMS, on the rank that needs most.

    Raises ConfigError for a form that is none, NotInThisVersionError where a layout's is not modelled.
    """
    if form not in FORMS:
        raise unknown("save-as", form, FORMS)
    base = sum(standing(plan).values())
    if form == "sharded":
        return Saving(base, 0, largest_tensor(plan), form)
    leaves = model_leaves(plan, form)
    merged = merging_bytes(plan) if form == "merged" else 0
    sizes = [bytes_of_held(leaf, plan.values) for leaf in leaves]
    if isinstance(plan.strategy, Fsdp2):
        return _gathered(plan, base, leaves, form)
    if isinstance(plan.strategy, DeepSpeed) and plan.strategy.stage == 3:
        return _zero_3(plan, plan.strategy, base, leaves, form)
    if plan.kernels.dtensor is not None:
        return _gathered(plan, base, leaves, form)
    if plan.parallel.inner > 1:
        raise NotInThisVersionError(
            f"save-as: got {form} with stages or stack {plan.resolved.setup.code}, not in this version; "
            "nearest valid: sharded"
        )
    return Saving(base, merged, max(sizes), form)


def _gathered(plan: Plan, base: int, leaves: list[Tensor], form: str) -> Saving:
    """Parameters gathered one by one; on the GPU they stay."""
    gathered = [_one_gathered(plan, leaf) for leaf in leaves]
    exact = plan.parallel.tp == 1 or not isinstance(plan.strategy, Fsdp2)
    host = sum(_stored_bytes(plan, leaf) for leaf in leaves)
    if form != "full-gpu":
        return Saving(base, max(map(sum, gathered)), host, form, exact)
    kept = best = 0
    for whole, passing in gathered:
        kept += whole
        best = max(best, kept + passing)
    largest = max(_stored_bytes(plan, leaf) for leaf in leaves)
    return Saving(base, best, largest, form, exact)


def _one_gathered(plan: Plan, leaf: Tensor) -> tuple[int, int]:
    """(bytes that stay, bytes that pass) of one parameter made whole; (0, 0) where every rank has it."""
    strategy, values, tp = plan.strategy, plan.values, plan.parallel.tp
    width = ITEMSIZE[_stored_dtype(plan, leaf)]
    cut = _is_cut(plan, leaf)
    local = product(leaf.shape).value(values) * width
    whole = local * (tp if cut else 1)
    if not isinstance(strategy, Fsdp2):
        columns = leaf.name.split(".")[-2] in ROWS
        return (whole, whole if columns else 0) if cut else (0, 0)
    padded = product(part_shape(leaf.shape, strategy.ranks)).value(values) * strategy.ranks * width
    if isinstance(strategy, OffloadedFsdp2):
        padded += padded // strategy.ranks  # its own part comes back from the host
    if not cut:
        return padded, 0
    return whole, padded


def _is_cut(plan: Plan, leaf: Tensor) -> bool:
    """Whether tensor parallel ranks hold different parts of a parameter."""
    return plan.parallel.tp > 1 and leaf.placed is not None and not leaf.placed.whole


def _stored_dtype(plan: Plan, leaf: Tensor) -> str:
    strategy = plan.strategy
    return strategy.stored_dtype(leaf) if isinstance(strategy, Fsdp2) else leaf.dtype


def _stored_bytes(plan: Plan, leaf: Tensor) -> int:
    """A whole parameter, all tensor parallel parts of it, as it is stored."""
    elements = leaf.numel.value(plan.values) * (plan.parallel.tp if _is_cut(plan, leaf) else 1)
    return elements * ITEMSIZE[_stored_dtype(plan, leaf)]


def _zero_3(plan: Plan, strategy: DeepSpeed, base: int, leaves: list[Tensor], form: str) -> Saving:
    """A module's parameters whole, then on rank 0's host; small ones are whole anyway."""
    limits, ranks = strategy.limits, strategy.ranks
    width = ITEMSIZE[strategy.dtype]
    wanted = {leaf.name for leaf in leaves}
    most = 0
    for module in strategy.modules:
        large = [s for _, s in module.parameters if s > limits.stage3_param_persistence_threshold]
        if not any(name in wanted for name, _ in module.parameters):
            continue
        parts = sum(-(-size // ranks) for size in large)
        copies = parts if strategy.offload.holds_parameters and ranks > 1 else 0
        most = max(most, (parts * ranks + copies) * width)
    if form == "full-gpu":
        raise NotInThisVersionError(
            "save-as: got full-gpu with zero 3; rule: DeepSpeed gathers to the host; nearest valid: full"
        )
    host = sum(bytes_of_held(leaf, plan.values) for leaf in leaves)
    return Saving(base, most, host, form, exact=False)
