"""Saving a checkpoint: its size on disk, and what the GPU and the host hold while it is written.

A state dict refers to the tensors there are; torch.save copies one storage after the other to the host.
Under FSDP2 a full state dict gathers every parameter from its shards: one after the other where each goes
to the host at once (cpu_offload), all of them at the end otherwise.
Source: torch 2.13, serialization.py (_save), distributed/_state_dict_utils.py (_iterate_state_dict).
Checked by: oracle/test_saving.py.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from memcalc.engine.dtypes import ITEMSIZE
from memcalc.engine.memory import step_memory
from memcalc.engine.optimizer import state_tensors
from memcalc.engine.parallel.data.ddp import Ddp
from memcalc.engine.parallel.data.fsdp2 import Fsdp2
from memcalc.engine.plan import Plan
from memcalc.engine.sizes import product
from memcalc.engine.states import all_leaves, bytes_of_held
from memcalc.errors import NotInThisVersionError

#: Optimizers whose states have a step count of their own, an fp32 scalar for each parameter.
_COUNTED: Final = frozenset({"adamw", "adafactor"})
_STEP_BYTES: Final = 4


class OnDisk(NamedTuple):
    """Bytes of tensors in a full checkpoint; a file adds names and alignment, below 2 KB a tensor."""

    model_bytes: int
    optimizer_bytes: int  # states, master copies and step counts
    tensors: int

    @property
    def total_bytes(self) -> int:
        return self.model_bytes + self.optimizer_bytes


class Saving(NamedTuple):
    """Requested bytes while a model's state dict is written between two steps.

    gathered_bytes: of parameters gathered from other ranks; host_bytes: at the most at once, on the rank
    that writes.
    """

    standing_bytes: int
    gathered_bytes: int
    host_bytes: int

    @property
    def peak_bytes(self) -> int:
        return self.standing_bytes + self.gathered_bytes


def on_disk(plan: Plan) -> OnDisk:
    """A full checkpoint of a plan's whole model: parameters as the step keeps them, optimizer states."""
    whole = plan.whole
    leaves = all_leaves(*whole.structure(whole.keeps_gradients))
    values, optimizer = whole.values, whole.optimizer
    states = count = 0
    for leaf in leaves:
        if not leaf.requires_grad:
            continue
        tensors = state_tensors(leaf, optimizer)
        states += sum(product(shape).value(values) * ITEMSIZE[dtype] for shape, dtype in tensors)
        count += len(tensors)
        if optimizer.name in _COUNTED and optimizer.impl != "fused":
            states, count = states + _STEP_BYTES, count + 1
    model = sum(bytes_of_held(leaf, values) for leaf in leaves)
    return OnDisk(model, states, len(leaves) + count)


def saving(plan: Plan, cpu_offload: bool = True) -> Saving:
    """Memory while the model's full state dict is made and written, on one GPU, DDP or FSDP2.

    cpu_offload: each gathered parameter goes to the host at once.
    Raises NotInThisVersionError for other ways to divide a model.
    """
    held = step_memory(plan)
    states = held.states
    standing = states.parameter_bytes + states.optimizer_bytes + states.master_bytes
    standing += held.input_bytes
    whole = plan.whole
    leaves = all_leaves(*whole.structure(whole.keeps_gradients))
    sizes = [bytes_of_held(leaf, whole.values) for leaf in leaves]
    layout = plan.parallel
    if layout.is_single or isinstance(plan.strategy, Ddp):
        return Saving(standing, 0, max(sizes))
    if not isinstance(plan.strategy, Fsdp2) or layout.size != layout.dp:
        raise NotInThisVersionError(
            "save: got a layout whose full state dict is not modelled; valid: one GPU, DDP, FSDP2"
        )
    shards = layout.shard or layout.dp
    padded = [
        -(
            -_rows(leaf.shape[0].value(whole.values), shards)
            * size
            // leaf.shape[0].value(whole.values)
        )
        for leaf, size in zip(leaves, sizes, strict=True)
    ]
    gathered = max(padded) if cpu_offload else sum(padded)
    return Saving(standing, gathered, sum(sizes) if cpu_offload else max(sizes))


def _rows(rows: int, shards: int) -> int:
    """Rows of a parameter whose shards are all as long as the longest."""
    return -(-rows // shards) * shards
