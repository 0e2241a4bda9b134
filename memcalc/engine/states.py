"""Model states: parameters, gradients, optimizer states and master copies, over all layers.

Everything is read off the leaves of a traced structure; the interior repetition of a run stands for
those not traced.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from memcalc.engine.dtypes import ITEMSIZE
from memcalc.engine.optimizer import OptimizerPlan, state_tensors
from memcalc.engine.parallel.strategy import Strategy, Whole
from memcalc.engine.sizes import product
from memcalc.engine.structure import Run, Structure
from memcalc.engine.tensors import Tensor


class States(NamedTuple):
    """Bytes of the model's states on one rank, and counts of elements."""

    parameters: int  # elements
    active_parameters: int  # elements that act on one token
    tensors: int
    parameter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int  # without master copies
    master_bytes: int
    trainable_parameters: int = 0  # elements


def multiplicity(runs: tuple[Run, ...]) -> dict[int, int]:
    """How many layers each traced block stands for; -1 (outside the blocks) for one."""
    weights = {-1: 1}
    block = 0
    for run in runs:
        for repetition in range(run.traced):
            for _ in run.pattern:
                weights[block] = 1 + (run.skipped if repetition == 1 else 0)
                block += 1
    return weights


def block_of(leaf: Tensor) -> int:
    """The traced block a parameter belongs to, -1 outside the blocks."""
    parts = leaf.name.split(".", 2)
    return int(parts[1]) if parts[0] == "layers" else -1


def is_expert(leaf: Tensor) -> bool:
    """Whether a parameter belongs to routed experts; shared experts act on every token."""
    return names_expert(leaf.name)


def names_expert(parameter: str) -> bool:
    """Whether a parameter of this name belongs to routed experts."""
    return ".expert_" in parameter


def all_leaves(structure: Structure, runs: tuple[Run, ...]) -> list[Tensor]:
    """The parameters of all layers in registration order; untraced layers repeat the interior's."""
    outside_before: list[Tensor] = []
    outside_after: list[Tensor] = []
    by_block: dict[int, list[Tensor]] = {}
    for leaf in structure.leaves:
        block = block_of(leaf)
        if block >= 0:
            by_block.setdefault(block, []).append(leaf)
        else:
            (outside_after if by_block else outside_before).append(leaf)
    layers: list[Tensor] = []
    first = 0
    for run in runs:
        period = len(run.pattern)
        for repetition in range(run.traced):
            begin = first + repetition * period
            one = [
                leaf
                for b in range(begin, begin + period)
                for leaf in registered(by_block.get(b, []))
            ]
            layers += one * (1 + (run.skipped if repetition == 1 else 0))
        first += run.traced * period
    return [*outside_before, *layers, *outside_after]


def registered(leaves: list[Tensor]) -> list[Tensor]:
    """A block's parameters in registration order: first use, but norms of q and k after o_proj."""
    norms = [leaf for leaf in leaves if ".q_norm." in leaf.name or ".k_norm." in leaf.name]
    if not norms:
        return leaves
    rest = [leaf for leaf in leaves if leaf not in norms]
    last = max((i for i, leaf in enumerate(rest) if ".o_proj." in leaf.name), default=-1) + 1
    return [*rest[:last], *norms, *rest[last:]]


def states(
    structure: Structure,
    runs: tuple[Run, ...],
    plan: OptimizerPlan,
    values: Mapping[str, int],
    strategy: Strategy = Whole(),  # noqa: B008  # immutable
) -> States:
    """Sum the states this rank holds; elements are those of the leaves before data sharding."""
    weights = multiplicity(runs)
    elements = active = tensors = params = grads = trainable = 0
    per_token = {**values, "E": values.get("t", 0)}
    for leaf in structure.leaves:
        times = weights[block_of(leaf)]
        numel = leaf.numel.value(values)
        elements += times * numel
        active += times * (leaf.numel.value(per_token) if is_expert(leaf) else numel)
        trainable += times * numel * leaf.requires_grad
        tensors += times
        params += times * bytes_of_held(strategy.parameter(leaf), values)
        grads += times * bytes_of_held(strategy.gradient(leaf), values)
    optimizer = master = 0
    stepped = strategy.optimized(all_leaves(structure, runs))
    times_of = Counter(map(id, stepped))  # equal layers share their leaves
    for leaf in {id(leaf): leaf for leaf in stepped}.values():
        for index, (shape, dtype) in enumerate(state_tensors(leaf, plan)):
            size = times_of[id(leaf)] * product(shape).value(values) * ITEMSIZE[dtype]
            if index == 0 and plan.master:
                master += size
            else:
                optimizer += size
    return States(elements, active, tensors, params, grads, optimizer, master, trainable)


def bytes_of_held(tensor: Tensor, values: Mapping[str, int]) -> int:
    """Bytes of a parameter, gradient or shard."""
    return tensor.numel.value(values) * ITEMSIZE[tensor.dtype]
