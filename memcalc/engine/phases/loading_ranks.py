"""Loading where ranks cut parameters, and a plan's loading in general: by whose code holds the weights.

FSDP2, direct: every rank reads the model on its host; fully_shard moves a block to the GPU whole, cuts it
and lets it go, block after block, the rest of the model last. FSDP2, rank0: the model is cut on the meta
device; rank 0 reads it and sends one whole parameter after the other, of which each rank keeps its part
(accelerate's cpu_ram_efficient_loading); rows that do not divide are padded once more. ZeRO-3 (zero.Init):
a module's parameters are whole while they are made and filled. Tensor parallelism, Megatron, pipelines: a
rank reads its own part. Everything else is whole on every rank.
Source: PyTorch 2.13, torch/distributed/fsdp/_fully_shard/_fsdp_init.py (_move_states_to_device),
_fsdp_param.py (_init_sharded_param); accelerate 1.15, utils/fsdp_utils.py (fsdp2_load_full_state_dict);
transformers 5.23, integrations/deepspeed.py; DeepSpeed 0.18.2, partition_parameters.py.
Checked by: oracle/test_loading_ranks.py; ZeRO-3 by reading.
"""

from __future__ import annotations

from memcalc.engine.dtypes import ITEMSIZE
from memcalc.engine.parallel.data.fsdp2 import Fsdp2
from memcalc.engine.parallel.data.offload_fsdp2 import OffloadedFsdp2
from memcalc.engine.parallel.deepspeed.deepspeed import DeepSpeed
from memcalc.engine.parallel.strategy import Strategy
from memcalc.engine.phases.loading import Loading, loading
from memcalc.engine.phases.standing import parameter_bytes
from memcalc.engine.plan import Plan
from memcalc.engine.quantised import weights_of_plan
from memcalc.engine.states import all_leaves, block_of, bytes_of_held
from memcalc.engine.tensors import Tensor
from memcalc.errors import ConfigError
from memcalc.inputs.weights import load_weights


def loading_of(plan: Plan, how: str = "direct", prequantised: bool = False) -> Loading:
    """The peak of loading a plan's weights on the rank that needs most.

    Raises ConfigError for a way that the layout has not, or a packed checkpoint of a model that is not.
    """
    peft, sharded = plan.resolved.setup.peft, isinstance(plan.strategy, Fsdp2)
    if how == "rank0" and (not sharded or plan.parallel.pp > 1):
        raise ConfigError(
            "load-by: got rank0 without sharded parameters; rule: one rank sends, all keep parts; "
            "nearest valid: --fsdp, or --load-by direct"
        )
    if peft is not None and peft.packed is not None:
        return _packed(plan, peft.packed, how, prequantised)
    if prequantised:
        raise ConfigError(
            "load-from: got prequantised with weights that are not packed; nearest valid: 16bit, or "
            "--peft qlora"
        )
    held = parameter_bytes(plan)
    if how == "copy":
        return Loading(held, held, "the state dict that was read")
    if plan.parallel.pp > 1:
        return Loading(held, 0, "nothing", exact=not sharded)
    if sharded:
        return _rank0(plan) if how == "rank0" else _block_by_block(plan)
    if isinstance(plan.strategy, DeepSpeed) and plan.strategy.stage == 3:
        return _zero_init(plan, plan.strategy)
    return Loading(held, 0, "nothing")


def _packed(plan: Plan, name: str, how: str, prequantised: bool) -> Loading:
    """A frozen base in a format, then what fine-tuning adds."""
    found = loading(
        weights_of_plan(plan, load_weights(name), plan.kernels.param_dtype), how, prequantised
    )
    added = parameter_bytes(plan) - found.weights_bytes
    passing = max(0, found.passing_bytes - added)
    return found._replace(weights_bytes=found.weights_bytes + added, passing_bytes=passing)


def _groups(plan: Plan) -> list[list[Tensor]]:
    """The parameters of each group in the order they are cut: blocks, then the rest."""
    leaves = all_leaves(*plan.structure(plan.keeps_gradients))
    groups: list[list[Tensor]] = []
    before: Tensor | None = None
    for leaf in leaves:
        if block_of(leaf) < 0:
            continue
        first = before is None or block_of(leaf) != block_of(before)
        repeated = groups and any(leaf is other for other in groups[-1])  # the same block again
        if first or repeated:
            groups.append([])
        groups[-1].append(leaf)
        before = leaf
    return [*groups, [leaf for leaf in leaves if block_of(leaf) < 0]]


def _whole_bytes(plan: Plan, leaf: Tensor) -> int:
    """A parameter in the dtype it is stored in."""
    strategy = plan.strategy
    assert isinstance(strategy, Fsdp2)
    stored = leaf.tape.external(leaf.shape, strategy.stored_dtype(leaf))
    return bytes_of_held(stored, plan.values)


def _part_bytes(plan: Plan, leaf: Tensor) -> int:
    strategy: Strategy = plan.strategy
    if isinstance(strategy, OffloadedFsdp2):
        return bytes_of_held(Fsdp2.parameter(strategy, leaf), plan.values)
    return bytes_of_held(strategy.parameter(leaf), plan.values)


def _block_by_block(plan: Plan) -> Loading:
    """Parts of the groups before, and a group whole beside its own parts."""
    on_host = isinstance(plan.strategy, OffloadedFsdp2)
    held = best = 0
    for group in _groups(plan):
        whole = sum(_whole_bytes(plan, leaf) for leaf in group)
        parts = [_part_bytes(plan, leaf) for leaf in group]
        best = max(best, whole + (max(parts, default=0) if on_host else held + sum(parts)))
        held += 0 if on_host else sum(parts)
    return Loading(held, best - held, "a group of parameters whole", exact=not on_host)


def _rank0(plan: Plan) -> Loading:
    """Parts of the parameters before, and one whole beside its own part."""
    on_host = isinstance(plan.strategy, OffloadedFsdp2)
    strategy = plan.strategy
    assert isinstance(strategy, Fsdp2)
    held = best = 0
    for leaf in all_leaves(*plan.structure(plan.keeps_gradients)):
        part = _part_bytes(plan, leaf)
        rows = leaf.shape[0].value(plan.values)
        copies = 1 if rows % strategy.ranks == 0 else 2
        best = max(best, held + _whole_bytes(plan, leaf) + copies * part)
        held += 0 if on_host else part
    return Loading(held, best - held, "a parameter whole", exact=not on_host)


def _zero_init(plan: Plan, strategy: DeepSpeed) -> Loading:
    """Parts of everything, and the largest module's parameters whole."""
    held, width = parameter_bytes(plan), ITEMSIZE[strategy.dtype]
    largest = max(sum(size for _, size in module.parameters) for module in strategy.modules)
    return Loading(held, largest * width, "a module's parameters whole", exact=False)
