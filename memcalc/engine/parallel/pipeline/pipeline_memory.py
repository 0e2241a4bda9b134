"""Memory of one pipeline rank: arithmetic over the instructions of its step.

Bytes alive before a piece, plus the piece: so micro-batches in flight, buffers and kept streams need no
formula of their own, and a step of any number of micro-batches costs a few additions for each.
Checked by: oracle/test_pipeline.py, unit/test_stages.py.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from memcalc.engine.memory import (
    StepMemory,
    alive_by_category,
    category,
    end_of,
    optimizer_peak,
    saved_per_layer,
)
from memcalc.engine.parallel.pipeline.actions import Action
from memcalc.engine.parallel.pipeline.pipeline import Piece, Stage, item_sizes
from memcalc.engine.parallel.pipeline.pipeline_program import Item, Take
from memcalc.engine.parallel.pipeline.schedules import most_in_flight
from memcalc.engine.results import StagePlace
from memcalc.engine.timeline import Instant


class Peak(NamedTuple):
    """The most of a phase: bytes, the instruction it is in, and the piece's own instant."""

    live_bytes: int
    position: int
    instant: Instant


def stage_memory(stage: Stage) -> StepMemory:
    """Requested bytes of one rank's step, from the second step on."""
    live = sum(stage.static.values())
    peaks, most_saved, end = _walk(stage, live)
    step = optimizer_peak(stage.optimizer, stage.plan)
    peaks["optimizer"] = Peak(end + step.live_bytes, len(stage.step.instructions), step)
    winner = max(peaks, key=lambda name: peaks[name].live_bytes)
    breakdown = _breakdown(stage, peaks[winner])
    instants = {name: _located(stage, peak) for name, peak in peaks.items()}
    return StepMemory(
        states=stage.states,
        peak_bytes=peaks[winner].live_bytes,
        peak=instants[winner],
        phases={name: peak.live_bytes for name, peak in peaks.items()},
        instants=instants,
        breakdown=breakdown,
        saved_bytes=most_saved,
        saved_per_layer_bytes=_saved_per_layer(stage),
        input_bytes=stage.static["buffers"],
    )


def schedule_peak(stage: Stage) -> Peak:
    """The most bytes alive before the optimizer steps."""
    peaks, _, _ = _walk(stage, sum(stage.static.values()))
    return max(peaks.values(), key=lambda peak: peak.live_bytes)


def _walk(stage: Stage, live: int) -> tuple[dict[str, Peak], int, int]:
    """Each phase's peak, the most saved for backward at once, and bytes alive after the schedule."""
    peaks: dict[str, Peak] = {}
    pieces, sizes = _pieces_of(stage), item_sizes(stage)
    saved = most_saved = 0
    for index, instruction in enumerate(stage.step.instructions):
        if isinstance(instruction, Action):
            kind, chunk, batch = instruction
            piece = pieces[instruction]
            for instant in piece.peaks:
                best = peaks.get(instant.phase)
                if best is None or live + instant.live_bytes > best.live_bytes:
                    peaks[instant.phase] = Peak(live + instant.live_bytes, index, instant)
            live += piece.change
            forward = pieces[Action("F", chunk, batch)]
            of_forward = forward.change - forward.kept["gathered"]
            saved += of_forward * {"F": 1, "I": 0}.get(kind, -1)
            most_saved = max(most_saved, saved)
        else:
            size = sizes[instruction.item[:2]]
            live += size if isinstance(instruction, Take) else -size
    return peaks, most_saved, live


def _pieces_of(stage: Stage) -> dict[Action, Piece]:
    """What every action of a rank does."""
    return {
        Action(kind, chunk.number, batch): piece
        for chunk in stage.chunks
        for batch in range(chunk.batches)
        for kind, piece in chunk.of(batch).pieces.items()
    }


def _breakdown(stage: Stage, peak: Peak) -> dict[str, int]:
    """Categories alive at a peak: what instructions before it left, and what its own piece has made."""
    totals = Counter(stage.static)
    pieces, sizes = _pieces_of(stage), item_sizes(stage)
    for instruction in stage.step.instructions[: peak.position]:
        if isinstance(instruction, Action):
            totals.update(pieces[instruction].kept)
        else:
            sign = 1 if isinstance(instruction, Take) else -1
            totals[_category(stage, instruction.item)] += sign * sizes[instruction.item[:2]]
    if peak.instant.phase == "optimizer":
        totals["temporary"] += peak.instant.live_bytes
        return dict(totals)
    action = stage.step.instructions[peak.position]
    assert isinstance(action, Action)
    chunk, instant = stage.chunk(action.chunk), peak.instant
    stretch = chunk.of(action.batch).stretches[action.kind]
    structure, runs, values = stretch.structure, stretch.runs, chunk.plan.values
    totals.update(alive_by_category(structure, runs, values, (instant.event, instant.copies)))
    before = end_of(structure, runs, stretch.begin)
    totals.subtract(alive_by_category(structure, runs, values, before))
    return dict(totals)


def _category(stage: Stage, item: Item) -> str:
    """The category of what a rank sends or receives; what stands from the step before is in buffers."""
    if item.kind in ("input", "seed") or item.batch < 0:
        return "buffers"
    structure = stage.chunk(item.chunk).of(item.batch).structure
    handed = structure.handed
    return category(structure, handed.stream if item.kind == "stream" else handed.gradient)


def _located(stage: Stage, peak: Peak) -> Instant:
    """The instant in terms of the whole model: layer and micro-batch, bytes over nothing."""
    instant = peak.instant
    if instant.phase == "optimizer":
        return instant
    action = stage.step.instructions[peak.position]
    assert isinstance(action, Action)
    first = stage.chunk(action.chunk).layers.start
    layer = instant.layer if instant.layer < 0 else first + instant.layer
    return instant._replace(layer=layer, micro_batch=action.batch)


def _saved_per_layer(stage: Stage) -> int:
    longest = max(stage.chunks, key=lambda chunk: len(chunk.layers))
    return saved_per_layer(longest.traced.structure, longest.traced.runs, longest.plan.values)


def place_of(stage: Stage, step: StepMemory) -> StagePlace:
    """What this rank is, beside its memory."""
    most = in_flight(stage)
    chunks = stage.chunks
    return StagePlace(
        stage=stage.rank,
        layers=tuple((c.layers[0], c.layers[-1]) if c.layers else () for c in chunks),
        parameters=step.states.parameters,
        in_flight=tuple(most[chunk.number] for chunk in chunks),
        peak_micro_batch=None if step.peak.micro_batch < 0 else step.peak.micro_batch,
    )


def in_flight(stage: Stage) -> dict[int, int]:
    """The most micro-batches of each chunk on the rank between forward and backward."""
    return most_in_flight([i for i in stage.step.instructions if isinstance(i, Action)])
