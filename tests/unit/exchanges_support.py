"""A small model in a layout, its exchanges, and what traffic.py says of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from memcalc import TrainingSetup
from memcalc.engine.device_side import Device, device_of
from memcalc.engine.make_plan import plan_of
from memcalc.engine.parallel.network import traffic
from memcalc.engine.plan import Plan
from memcalc.engine.states import states
from memcalc.engine.timing.exchanges import Exchange, exchanges_of
from memcalc.inputs.models import load_model
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.rates import Rates, rates_of

TINY = replace(
    load_model("llama-3.2-1b"), num_hidden_layers=4, vocab_size=4096, tie_word_embeddings=False
)
SPARSE = load_model("mixtral-8x7b")
S, H = 512, TINY.hidden_size


def made(model: Any = TINY, layout: dict[str, Any] | None = None, **setup: Any) -> Plan:
    usual = {"seq_len": S, "micro_batch_size": 2, "grad_accum_steps": 3}
    return plan_of(model, TrainingSetup(**{**usual, **setup}), None, ParallelPlan(**(layout or {})))


def priced(device: Device) -> Rates:
    assert device.gpu is not None
    return rates_of(device.gpu)


def found(plan: Plan, flags: dict[str, Any] | None = None) -> tuple[Exchange, ...]:
    device = device_of("h100-80gb")
    return exchanges_of(plan, device, priced(device), flags)


def sent(exchanges: tuple[Exchange, ...], plan: Plan, *axes: str) -> float:
    """Bytes a rank sends a step over these axes."""
    batches = plan.resolved.grad_accum_steps
    return sum(
        one.sent_bytes * (batches if one.per == "micro-batch" else 1)
        for one in exchanges
        if one.axis in axes
    )


def closed(found: tuple[traffic.Traffic, ...]) -> int:
    return sum(one.sent_bytes for one in found)


def elements(plan: Plan) -> int:
    """Parameters of the chunk before data sharding."""
    structure, runs = plan.structure(plan.keeps_gradients)
    return states(structure, runs, plan.optimizer, plan.values).parameters
