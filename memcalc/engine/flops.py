"""FLOPs of one step from the ledger: executed ones, and the model's by the two usual conventions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from memcalc.engine.plan import Plan
from memcalc.engine.states import multiplicity
from memcalc.engine.structure import Run, Structure
from memcalc.engine.timing.arith import Num, minimum
from memcalc.inputs.model import ModelConfig


class StepFlops(NamedTuple):
    """Matmul FLOPs of one micro-batch by kind, and per token.

    executed: what the kernels run, attention over the full square, recomputation and flash's inner
    recomputation included. model: 3 x forward, attention over each layer's context (its window where
    it slides); model_causal: with half the attention term.
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
    core = _core_forward(structure, runs, plan.values)
    tokens = plan.resolved.tokens
    linear = 3 * (totals["forward"] - core) / tokens
    window = core * _mean_context(plan.config, plan.resolved.seq_len) / plan.resolved.seq_len
    attention = 3 * window / tokens
    return StepFlops(
        **totals,
        model_per_token=linear + attention,
        model_causal_per_token=linear + attention / 2,
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


def _core_forward(structure: Structure, runs: tuple[Run, ...], values: Mapping[str, int]) -> int:
    """Forward FLOPs of the attention cores, full square."""
    weights = multiplicity(runs)
    return sum(
        weights[block] * record.flops["forward"].value(values)
        for (block, op), record in structure.records.items()
        if op == "attention" and "forward" in record.flops
    )


def _mean_context(config: ModelConfig, seq: Num) -> Num:
    """Mean context of the layers: the window where one slides, else the sequence."""
    window = minimum(seq, config.sliding_window or seq)
    layers = range(config.num_hidden_layers)
    sliding = sum(config.layer_type(layer) == "sliding" for layer in layers)
    return (sliding * window + (len(layers) - sliding) * seq) / len(layers)
