"""The engine run on a config.json as `run_hf` runs transformers: parameters, saved bytes, peak."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from memcalc.engine.build import Build
from memcalc.engine.dims import dim_sizes, dim_values
from memcalc.engine.families import traits_for
from memcalc.engine.kernels import BlockKind, Kernels
from memcalc.engine.tensors import Tape
from memcalc.engine.trace import micro_batch
from memcalc.harness.watch.tracker import Alloc
from memcalc.inputs.hf import model_from_config
from tests.oracle.support.hf import HfRecord


@dataclass(frozen=True)
class EngineRecord:
    """params in elements; saved and peak_over_params in bytes over parameters and inputs.

    events: (bytes or their negative, primitive that made the storage, phase, block, op).
    """

    params: int
    saved: int
    peak_over_params: int
    events: list[tuple[int, str, str, int, str]]


def trace_hf(
    config: dict[str, Any],
    batch: int,
    seq: int,
    checkpoint: bool = False,
    attention: str = "flash",
    autocast: bool = False,
    narrow_loss: bool = False,
) -> EngineRecord:
    """One micro-batch, forward and backward, by the family's own code: bf16, or bf16 autocast.

    narrow_loss: the loss reads 16-bit logits as they are.
    """
    model = model_from_config(config, config["model_type"])
    values = dim_values(model, batch, seq)
    kernels = Kernels(
        hf=True,
        attention=attention,
        loss="fp32",
        traits=traits_for(model.model_type),
        param_dtype="fp32" if autocast else "bf16",
        autocast=autocast,
        narrow_loss=narrow_loss,
    )
    tape = Tape(watched=True)
    layers = [
        BlockKind(model.layer_type(i), model.is_sparse(i), "full" if checkpoint else "none")
        for i in range(model.num_hidden_layers)
    ]
    micro_batch(Build(tape, model, kernels, dim_sizes(values)), layers, False)
    return _record(tape, values)


def _record(tape: Tape, values: dict[str, int]) -> EngineRecord:
    sizes = [size.value(values) for size in tape.sizes]
    forward_end = next(position for position, what, _ in tape.marks if what == "backward")
    live = peak = saved = 0
    events = []
    for position, event in enumerate(tape.events):
        if position == forward_end:
            saved = live
        index = event if event >= 0 else ~event
        amount = sizes[index] if event >= 0 else -sizes[index]
        live += amount
        peak = max(peak, live)
        label = tape.labels[tape.labels_of[index]]
        events.append((amount, tape.names[index], label.phase, label.block, label.op))
    params = sum(leaf.numel.value(values) for leaf in tape.leaves.values())
    return EngineRecord(params, saved, peak, events)


def steps(amounts: list[int]) -> list[tuple[int, list[int]]]:
    """Each allocation with the sizes freed before the next one, in any order."""
    out: list[tuple[int, list[int]]] = []
    for amount in amounts:
        if amount > 0:
            out.append((amount, []))
        elif out:
            out[-1][1].append(-amount)
    return [(allocated, sorted(freed)) for allocated, freed in out]


def steps_of_hf(record: HfRecord) -> list[tuple[int, list[int]]]:
    """The same of a run of transformers; what existed before does not count."""
    before = {alloc.storage for alloc in record.initial}
    return steps(
        [
            event.nbytes if isinstance(event, Alloc) else -event.nbytes
            for event in record.events
            if event.storage not in before
        ]
    )
