"""FLOPs of one step from the ledger: executed ones, and the model's by the two usual conventions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from memcalc.engine.plan import Plan
from memcalc.engine.states import multiplicity
from memcalc.engine.structure import Run, Structure
from memcalc.engine.timing.arith import Num, minimum
from memcalc.inputs.model import ModelConfig

#: Operators of the ledger whose products are not with weights.
_CORES = ("attention", "cross_attention")


class StepFlops(NamedTuple):
    """Matmul FLOPs of one micro-batch by kind, and per token.

    executed: what the kernels run, attention over the full square, recomputation and flash's inner
    recomputation included. model: 3 x forward, attention over each layer's context (its window where
    it slides); model_causal: with half the attention term where a mask is causal. Of an encoder-decoder a
    token is one of the source: the FLOPs of both halves over the source's tokens. Of frozen weights no
    gradient is the model's work either: products then count with what backward does of them.
    """

    forward: int
    dgrad: int
    wgrad: int
    recompute: int
    model_per_token: float
    model_causal_per_token: float
    executed_per_token: float

    @property
    def executed(self) -> int:
        return self.forward + self.dgrad + self.wgrad + self.recompute


def step_flops(plan: Plan) -> StepFlops:
    """FLOPs of one micro-batch, forward and backward."""
    structure, runs = plan.structure(plan.keeps_gradients)
    totals = executed_flops(structure, runs, plan.values)
    core, causal = _core_forward(structure, runs, plan.values)
    tokens = plan.resolved.tokens
    linear = 3 * (totals["forward"] - core) / tokens
    if plan.kernels.adapter is not None:
        products = _backward_of_products(structure, runs, plan.values)
        reached = _reached(structure, runs)
        linear = (totals["forward"] - core + products) / tokens
        core, causal = (part * (1 + 2 * reached) / 3 for part in (core, causal))
    context = _mean_context(plan.config, plan.resolved.seq_len) / plan.resolved.seq_len
    attention, halved = (3 * part * context / tokens for part in (core, causal))
    return StepFlops(
        **totals,
        model_per_token=linear + attention,
        model_causal_per_token=linear + attention - halved / 2,
        executed_per_token=sum(totals.values()) / tokens,
    )


def executed_flops(
    structure: Structure, runs: tuple[Run, ...], values: Mapping[str, int]
) -> dict[str, int]:
    """Executed FLOPs of a micro-batch by kind: forward, dgrad, wgrad, recompute."""
    weights = multiplicity(runs)
    totals = dict.fromkeys(("forward", "dgrad", "wgrad", "recompute"), 0)
    for block, counts in structure.block_flops.items():
        for kind, flops in counts.items():
            totals[kind] += weights[block] * flops.value(values)
    return totals


def _backward_of_products(
    structure: Structure, runs: tuple[Run, ...], values: Mapping[str, int]
) -> int:
    """FLOPs of backward outside the attention cores, recomputation left out."""
    weights = multiplicity(runs)
    return sum(
        weights[block] * record.flops[kind].value(values)
        for (block, op), record in structure.records.items()
        for kind in ("dgrad", "wgrad")
        if op not in _CORES and kind in record.flops
    )


def _reached(structure: Structure, runs: tuple[Run, ...]) -> float:
    """The share of attention cores that backward reaches."""
    weights = multiplicity(runs)
    cores = [
        (b, "dgrad" in one.flops) for (b, op), one in structure.records.items() if op in _CORES
    ]
    return sum(weights[b] * back for b, back in cores) / sum(weights[b] for b, _ in cores)


def _core_forward(
    structure: Structure, runs: tuple[Run, ...], values: Mapping[str, int]
) -> tuple[float, float]:
    """Forward FLOPs of the attention cores over their full square, and of those that are causal.

    An encoder's are not, nor what a decoder reads of an encoder.
    """
    weights = multiplicity(runs)
    kinds = [kind for run in structure.runs for _ in range(run.traced) for kind in run.pattern]
    core = causal = 0
    for (block, op), record in structure.records.items():
        if op in _CORES and "forward" in record.flops:
            flops = weights[block] * record.flops["forward"].value(values)
            core += flops
            causal += flops if op == "attention" and kinds[block].stack != "encoder" else 0
    return core, causal


def _mean_context(config: ModelConfig, seq: Num) -> Num:
    """Mean context of the layers: the window where one slides, else the sequence."""
    window = minimum(seq, config.sliding_window or seq)
    layers = range(config.num_hidden_layers)
    sliding = sum(config.layer_type(layer) == "sliding" for layer in layers)
    return (sliding * window + (len(layers) - sliding) * seq) / len(layers)
