"""A pipeline rank's allocations for the allocator's simulation: loading, then two whole steps.

The schedule is played with as few micro-batches as show all of it: its warm-up, its steady
state once, its end. More micro-batches repeat the steady state, whose pieces fall into the blocks that
the same pieces left. What the micro-batches that are not played would add to the peak (forwards in
flight with GPipe; streams that a runtime keeps until the step ends) is allocated before the step.
Checked by: unit/test_stages.py, what is played against every micro-batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from memcalc.engine.parallel.pipeline.actions import Action, Pipe
from memcalc.engine.parallel.pipeline.pipeline import (
    Stage,
    Traced,
    id_bytes,
    item_bytes,
    item_sizes,
    step_of,
)
from memcalc.engine.parallel.pipeline.pipeline_memory import in_flight, schedule_peak
from memcalc.engine.parallel.pipeline.pipeline_program import Item, Take
from memcalc.engine.program import Phase, Stream, expanded, play, state_blocks
from memcalc.engine.states import all_leaves, bytes_of_held
from memcalc.engine.timeline import size_values

#: What is played of the steady state: a micro-batch of 1F1B, a round of the interleaved schedule.
_STEADY = 1
#: Micro-batches of GPipe that are played; of the others only what a forward keeps is there.
_GPIPE = 8


def played_pipe(schedule: str, pipe: Pipe, rank: int) -> Pipe:
    """The pipe with as many micro-batches as are played for this rank."""
    if schedule == "gpipe":
        most = _GPIPE
    elif schedule == "1f1b":
        most = pipe.pp - rank + _STEADY
    elif schedule in ("zb-v", "dualpipe"):
        most = 2 * pipe.pp + _STEADY
    else:  # gradients of weights that come late shift the blocks once more
        most = (1 + _STEADY + (schedule == "zb-h1")) * pipe.per_round
    return pipe._replace(batches=min(pipe.batches, most))


class _Events(NamedTuple):
    """One chunk's micro-batch, cut into its actions; ids of storages count on from one to the next.

    events, sizes: of each action. stream, gradient: ids of what it hands on, -1 for none. left: of
    the gradients it leaves. earlier: bytes of gradients of earlier micro-batches that it frees, by id.
    """

    events: list[list[int]]
    sizes: list[list[int]]
    stream: int
    gradient: int
    left: list[int]
    earlier: Mapping[int, int]

    def offset(self, part: int) -> int:
        """The first id of a part."""
        return sum(len(sizes) for sizes in self.sizes[:part])


def stage_program(stage: Stage, workspaces: tuple[int, ...], steps: int = 2) -> Stream:
    """The stream of `steps` optimizer steps of one rank from an empty cache."""
    player = _Player(stage)
    leaves = [
        (chunk.plan, leaf)
        for chunk in stage.chunks
        for leaf in all_leaves(chunk.traced.structure, chunk.traced.runs)
    ]
    strategy = stage.plan.strategy
    stepped = strategy.optimized([leaf for _, leaf in leaves])
    masters, states = state_blocks(stage.plan, stepped)
    values = stage.plan.values

    def load(stream: Stream) -> None:
        for plan, leaf in leaves:
            stream.allocate(bytes_of_held(plan.strategy.parameter(leaf), values))
        for size in (*_standing_blocks(stage), *masters):
            stream.allocate(size)
        stream.allocate(id_bytes(stage.plan, stage.step))
        for size in workspaces:
            stream.allocate(size)
        player.make_buffers(stream)
        made = [
            stream.allocate(size)
            for chunk in stage.chunks
            for size in strategy.loading_bytes(chunk.plan)
        ]
        stream.events += [~block for block in made]
        if not (strategy.persistent_gradients or stage.plan.resolved.setup.set_to_none):
            for plan, leaf in leaves:
                stream.allocate(bytes_of_held(plan.strategy.gradient(leaf), values))

    def make_states(stream: Stream) -> None:
        for size in states:
            stream.allocate(size)

    def optimizer_step(stream: Stream) -> None:
        stream.splice(stage.optimizer.events, stage.optimizer.sizes(values))
        player.drop_gradients(stream)

    batches, optimizer = Phase("micro-batches", player.step), Phase("optimizer", optimizer_step)
    first = [batches, Phase("optimizer states", make_states), optimizer]
    later = [Phase("begin", player.begin), batches, optimizer] * (steps - 1)
    return play([Phase("load", load), *first, *later])


def _standing_blocks(stage: Stage) -> list[int]:
    """Blocks that stand for the whole run beside parameters and states: gradients, buffers."""
    blocks: list[int] = []
    strategy, in_buckets = stage.plan.strategy, False
    for chunk in stage.chunks:
        buckets = strategy.buckets(chunk.plan)
        in_buckets = in_buckets or bool(buckets)
        blocks += buckets
        if strategy.persistent_gradients and not buckets:
            leaves = all_leaves(chunk.traced.structure, chunk.traced.runs)
            kept = (strategy.gradient(leaf) for leaf in leaves)
            blocks += [bytes_of_held(gradient, chunk.plan.values) for gradient in kept]
    if not in_buckets:
        blocks += strategy.fixed_bytes_of_rank([chunk.plan for chunk in stage.chunks]).values()
    return blocks


class _Player:
    """Appends a rank's instructions to a stream; knows which block every tensor lies in."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        layout = stage.plan.parallel
        self.batches = stage.plan.resolved.grad_accum_steps
        whole = Pipe(layout.pp, layout.vpp, self.batches)
        pipe = played_pipe(layout.schedule, whole, stage.rank)
        self.short = step_of(stage.plan, stage.rank, pipe)
        played = stage._replace(step=self.short)
        self.missing = _missing(stage, played)
        self.filled = _filled(played)
        self.sizes = item_sizes(stage)
        self.events: dict[
            tuple[int, int, str], _Events
        ] = {}  # of a chunk, a variant and its actions
        self.at: dict[Item, int] = {}  # where each tensor a stage hands on lies
        self.bases: dict[tuple[int, int], list[int]] = {}  # where the parts of those in flight lie
        self.halved = {one[1:] for one in self.short.instructions if one[0] == "I"}
        self.gradients: dict[int, list[int]] = {chunk.number: [] for chunk in stage.chunks}

    def make_buffers(self, stream: Stream) -> None:
        """What a step finds: a buffer for all that comes, or what the step before left."""
        for item in self.stage.step.standing:
            self.at[item] = stream.allocate(self.sizes[item[:2]])

    def step(self, stream: Stream) -> None:
        """One step up to the optimizer."""
        missing: list[int] = []
        begin, end = self.filled
        for position, instruction in enumerate(self.short.instructions):
            if begin <= position <= end:  # all are there at the peak
                due = len(self.missing) * (position + 1 - begin) // (end + 1 - begin)
                missing += [stream.allocate(size) for size in self.missing[len(missing) : due]]
            if isinstance(instruction, Action):
                self._compute(stream, instruction)
            elif isinstance(instruction, Take):
                size = self.sizes[instruction.item[:2]]
                self.at[instruction.item] = stream.allocate(size)
            else:
                stream.events.append(~self.at.pop(instruction.item))
        renewed = [(buffer, self.at[item]) for buffer, item in self.short.renewed]
        self.at.update(renewed)
        stream.events += [~block for block in missing]

    def begin(self, stream: Stream) -> None:
        """What the step before left goes."""
        for item in self.short.left:
            block = self.at.pop(item, None)
            if block is not None and block not in self.at.values():
                stream.events.append(~block)

    def drop_gradients(self, stream: Stream) -> None:
        """The optimizer is done with the gradients of this step."""
        if self.stage.plan.resolved.setup.set_to_none:
            for blocks in self.gradients.values():
                stream.events += [~block for block in blocks]
                blocks.clear()

    def _compute(self, stream: Stream, action: Action) -> None:
        kind, chunk, batch = action
        piece = self._piece(chunk, batch)
        part = {"F": 0, "B": 1, "I": 1, "W": 2}[kind]
        if part >= len(piece.events):  # the first chunk: all of backward is the second half
            part = 1
        elif kind == "I" and len(piece.events) == 2:
            return
        bases = self.bases.setdefault((chunk, batch), [])
        bases.append(len(stream.sizes) - piece.offset(part))
        shifts = [base for base, made in zip(bases, piece.sizes, strict=False) for _ in made]
        for i, size in piece.earlier.items():
            if i < len(shifts) and i >= piece.offset(part):
                shifts[i] = self._replaced(stream, chunk, size) - i
        stream.events += [e + shifts[e] if e >= 0 else e - shifts[~e] for e in piece.events[part]]
        stream.sizes += piece.sizes[part]
        if kind == "F":
            self.at[Item("stream", chunk, batch)] = bases[0] + piece.stream
        if part == 1 and piece.gradient >= 0:
            self.at[Item("gradient", chunk, batch)] = bases[1] + piece.gradient
        if part == len(piece.events) - 1:
            self.gradients[chunk] += [i + shifts[i] for i in piece.left]
            del self.bases[chunk, batch]

    def _replaced(self, stream: Stream, chunk: int, size: int) -> int:
        """A gradient of an earlier micro-batch, of this size, which this one replaces."""
        known = self.gradients[chunk]
        return known.pop(next(i for i, block in enumerate(known) if stream.sizes[block] == size))

    def _piece(self, chunk: int, batch: int) -> _Events:
        of = self.stage.chunk(chunk)
        kinds = "FIW" if (chunk, batch) in self.halved else "FB"
        key = (chunk, of.variant(batch), kinds)
        known = self.events.get(key)
        if known is None:
            known = self.events[key] = _cut(of.of(batch), kinds, of.plan.values)
        return known


def _filled(played: Stage) -> tuple[int, int]:
    """The instructions during which missing blocks come, one after the other, the last at the peak.

    What a runtime keeps grows with the steady state; GPipe's forwards in flight are there first.
    """
    if played.plan.parallel.schedule == "gpipe":
        return 0, 0
    end = schedule_peak(played).position
    instructions = played.step.instructions[: end + 1]
    backwards = (at for at, one in enumerate(instructions) if one[0] in ("B", "I", "W"))
    return next(backwards, end), end


def _missing(stage: Stage, played: Stage) -> list[int]:
    """Blocks that bring the peak of what is played to that of the whole step."""
    lacking = schedule_peak(stage).live_bytes - schedule_peak(played).live_bytes
    blocks: list[int] = []
    most, shown = in_flight(stage), in_flight(played)
    for chunk in stage.chunks:
        structure = chunk.traced.structure
        sizes = size_values(structure, chunk.plan.values)
        whole = expanded(structure, chunk.traced.runs)
        _, made = whole.forward
        kept = [sizes[i] for i in whole.traced[:made] if i in structure.kept]
        blocks += kept * (most[chunk.number] - shown[chunk.number])
    lacking -= sum(blocks)
    one = max(item_bytes(chunk, kind) for chunk in stage.chunks for kind in ("stream", "gradient"))
    return blocks + [one] * (lacking // one) + [lacking % one]


def _cut(traced: Traced, kinds: str, values: Mapping[str, int]) -> _Events:
    """A micro-batch's events by action; without an input there is no first half of backward."""
    structure, runs = traced.stretches[kinds[-1]][:2]
    whole = expanded(structure, runs)
    sizes = whole.sizes(size_values(structure, values))
    cuts = [whole.forward]
    if structure.weights_begin >= 0:  # all of it is traced
        half = structure.weights_begin
        cuts.append((half, sum(event >= 0 for event in whole.events[:half])))
    begins, ends = [(0, 0), *cuts], [*cuts, (len(whole.events), len(sizes))]
    handed = structure.handed
    gone = {~event for event in whole.events if event < 0}
    stream, gradient = whole.traced.index(handed.stream), -1
    if handed.gradient >= 0:
        gradient = whole.traced.index(handed.gradient)
    stays = (i for i in range(len(sizes)) if i not in gone and i not in (stream, gradient))
    return _Events(
        events=[whole.events[a[0] : b[0]] for a, b in zip(begins, ends, strict=True)],
        sizes=[sizes[a[1] : b[1]] for a, b in zip(begins, ends, strict=True)],
        stream=stream,
        gradient=gradient,
        left=list(stays),
        earlier={i: sizes[i] for i in whole.earlier},
    )
