"""What a checkpoint is on disk: tensors by form and layout, and in how many files.

A full checkpoint is the model as the step keeps it and the optimizer's states with its master copies;
an adapter's is what fine-tuning adds and its states; merged is the model alone, to be served. Sharded,
every rank writes its part. DeepSpeed writes the 16-bit model once (stages 0 to 2), and of each rank its
part of the fp32 copies and moments, in stage 3 of frozen parameters too; the 16-bit model again where it
is gathered.
Source: torch 2.13, serialization.py, distributed/checkpoint; DeepSpeed 0.18.2, runtime/engine.py
(_save_checkpoint, _save_zero_checkpoint, _get_zero_frozen_param_attributes).
Checked by: oracle/test_saving.py, unit/test_phases_divided.py.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from memcalc.engine.dtypes import ITEMSIZE
from memcalc.engine.optimizer import state_tensors
from memcalc.engine.parallel.deepspeed.deepspeed import DeepSpeed
from memcalc.engine.plan import Plan
from memcalc.engine.quantised import weights_of_plan
from memcalc.engine.sizes import product
from memcalc.engine.states import all_leaves, bytes_of_held
from memcalc.engine.tensors import Tensor
from memcalc.errors import ConfigError
from memcalc.inputs.peft import ADDS
from memcalc.inputs.weights import load_weights

#: Optimizers whose states have a step count of their own, an fp32 scalar for each parameter.
_COUNTED: Final = frozenset({"adamw", "adafactor"})
_STEP_BYTES: Final = 4


class File(NamedTuple):
    """Files of one kind: how many, bytes of each."""

    name: str
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody calls
    each_bytes: int


class OnDisk(NamedTuple):
    """Bytes of tensors in a checkpoint; a file adds names and alignment, below 2 KB a tensor."""

    model_bytes: int
    optimizer_bytes: int  # states, master copies and step counts
    tensors: int
    files: tuple[File, ...] = ()

    @property
    def total_bytes(self) -> int:
        return self.model_bytes + self.optimizer_bytes

    def plain(self) -> dict[str, Any]:
        """As JSON shows it."""
        return {
            "model_bytes": self.model_bytes, "optimizer_bytes": self.optimizer_bytes,
            "total_bytes": self.total_bytes, "tensors": self.tensors,
            "files": [one._asdict() for one in self.files],
        }  # fmt: skip


def adds(plan: Plan) -> bool:
    """Whether fine-tuning adds parameters of its own, which a file beside the model can hold."""
    adapter = plan.kernels.adapter
    return adapter is not None and adapter.method in ADDS


def default_form(plan: Plan) -> str:
    """What is usually written: adapters alone; parts where stages or Megatron divide the model."""
    if adds(plan):
        return "adapter"
    divided = plan.kernels.megatron is not None or plan.parallel.pp > 1
    return "sharded" if divided else "full"


def model_leaves(plan: Plan, form: str) -> list[Tensor]:
    """The parameters a form writes, of all layers. Raises ConfigError where there is no adapter."""
    leaves = all_leaves(*plan.structure(plan.keeps_gradients))
    if form == "adapter":
        if not adds(plan):
            raise ConfigError(
                "save-as: got adapter where nothing is added to the model; nearest valid: full, or "
                "--peft lora"
            )
        return [leaf for leaf in leaves if leaf.requires_grad]
    if form == "merged":
        return [leaf for leaf in leaves if not leaf.requires_grad]
    return leaves


def on_disk(plan: Plan, form: str = "full") -> OnDisk:
    """A checkpoint of a plan's whole model in a form of `saving.FORMS`."""
    whole = plan.whole
    leaves = model_leaves(whole, form)
    states = count = 0
    if form != "merged":
        states, count = _states(whole, leaves)
    model = _model_bytes(whole, leaves, form)
    found = OnDisk(model, states, len(leaves) + count)
    return found._replace(files=_files(plan, found, form))


def _states(plan: Plan, leaves: list[Tensor]) -> tuple[int, int]:
    """Bytes and tensors of the optimizer's states of what trains."""
    values, optimizer = plan.values, plan.optimizer._replace(scores=0)  # which nothing saves
    states = count = 0
    for leaf in leaves:
        if not leaf.requires_grad:
            continue
        tensors = state_tensors(leaf, optimizer)
        states += sum(product(shape).value(values) * ITEMSIZE[dtype] for shape, dtype in tensors)
        count += len(tensors)
        if optimizer.name in _COUNTED and optimizer.impl != "fused":
            states, count = states + _STEP_BYTES, count + 1
    return states, count


def _model_bytes(plan: Plan, leaves: list[Tensor], form: str) -> int:
    """Parameters as the step keeps them; a packed base as a file holds it."""
    total = sum(bytes_of_held(leaf, plan.values) for leaf in leaves)
    peft = plan.resolved.setup.peft
    if peft is None or peft.packed is None or form == "adapter":
        return total
    packed = weights_of_plan(plan, load_weights(peft.packed), plan.kernels.param_dtype)
    trained = (leaf for leaf in leaves if leaf.requires_grad)
    return packed.file_bytes + sum(bytes_of_held(leaf, plan.values) for leaf in trained)


def _files(plan: Plan, found: OnDisk, form: str) -> tuple[File, ...]:
    """By whose code writes them."""
    ranks, states = plan.parallel.size, found.optimizer_bytes
    if isinstance(plan.strategy, DeepSpeed) and form in ("full", "sharded"):
        return _of_deepspeed(plan, plan.strategy, found, form)
    if form == "sharded" and ranks > 1:
        held = plan.parallel.shard_ranks * plan.parallel.tp * plan.parallel.pp
        parts = held if plan.parallel.zero > 1 else plan.parallel.tp * plan.parallel.pp
        each = -(-found.model_bytes // parts), -(-states // parts)
        return File("model part", parts, each[0]), File("optimizer part", parts, each[1])
    model = {"adapter": "adapter", "merged": "merged model"}.get(form, "model")
    files = [File(model, 1, found.model_bytes)]
    return (*files, File("optimizer", 1, states)) if states else tuple(files)


def _of_deepspeed(plan: Plan, strategy: DeepSpeed, found: OnDisk, form: str) -> tuple[File, ...]:
    """model_states of each rank or of the first, optim_states of each."""
    ranks = strategy.ranks if strategy.stage else 1
    optimizer = File("optim_states", ranks, -(-found.optimizer_bytes // ranks))
    if strategy.stage < 3:
        return File("model_states", 1, found.model_bytes), optimizer
    frozen = [leaf for leaf in model_leaves(plan.whole, "full") if not leaf.requires_grad]
    size = sum(bytes_of_held(leaf, plan.whole.values) for leaf in frozen)
    files = [File("model_states", ranks, -(-size // ranks)), optimizer]
    if form == "full":
        files.insert(0, File("16-bit model", 1, found.model_bytes))
    return tuple(one for one in files if one.each_bytes)
