"""Splits: how a model's blocks are cut into chunks of pipeline ranks, and which ranks are alike.

Checked by: property/test_search_grid.py, unit/test_search_space.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from memcalc.engine.parallel.pipeline.actions import Pipe
from memcalc.engine.parallel.pipeline.schedules import chunks_of
from memcalc.engine.search.weights import Chunk
from memcalc.inputs.model import ModelConfig


class Split(NamedTuple):
    """Stages, chunks of each, the schedule, and the blocks of every chunk where they are stated."""

    pp: int
    vpp: int = 1
    schedule: str = "1f1b"
    stage_layers: tuple[int, ...] | None = None

    @property
    def chunks(self) -> int:
        """Chunks of the model."""
        return self.pp * self.vpp

    def layers(self, config: ModelConfig) -> tuple[int, ...]:
        """Blocks of every chunk: as stated, else evenly, first chunks one more."""
        if self.stage_layers is not None:
            return self.stage_layers
        each, more = divmod(config.num_hidden_layers, self.chunks)
        return tuple(each + (chunk < more) for chunk in range(self.chunks))


class Cut(NamedTuple):
    """A split of one model: its classes of chunks, the class of every chunk, and ranks that are alike.

    ranks: the first rank of each kind (of equal ranks it holds most), with the classes of its chunks and
    how many ranks are like it.
    """

    split: Split
    classes: tuple[Chunk, ...]
    of: tuple[int, ...]
    ranks: tuple[tuple[int, tuple[int, ...]], ...]
    kind_of_rank: tuple[int, ...]

    @property
    def most_layers(self) -> int:
        """Blocks of the longest chunk."""
        return max(chunk.layers for chunk in self.classes)

    def pipe(self, batches: int) -> Pipe:
        """The pipe of a step."""
        return Pipe(self.split.pp, self.split.vpp, batches)


def cut_of(config: ModelConfig, split: Split) -> Cut:
    """The chunks of a model under a split; sparse blocks must follow dense ones (`is_ordered`)."""
    counts, begin, found = split.layers(config), 0, []
    for number, count in enumerate(counts):
        sparse = sum(config.is_sparse(layer) for layer in range(begin, begin + count))
        ends = (number == 0, number == split.chunks - 1)
        found.append(Chunk(count - sparse, sparse, *ends))
        begin += count
    classes = tuple(dict.fromkeys(found))
    of = tuple(classes.index(chunk) for chunk in found)
    pipe = Pipe(split.pp, split.vpp, split.pp)
    held = [
        tuple(of[chunk] for chunk in chunks_of(split.schedule, pipe, rank))
        for rank in range(split.pp)
    ]
    kinds = list(dict.fromkeys(held))
    ranks = tuple((held.index(kind), kind) for kind in kinds)
    return Cut(split, classes, of, ranks, tuple(kinds.index(one) for one in held))


def alike(cuts: Sequence[Cut]) -> list[tuple[Cut, ...]]:
    """Cuts that differ only in how many blocks their classes have, the most of which are as many."""
    found: dict[Any, list[Cut]] = {}
    for cut in cuts:
        ends = tuple((chunk.begins, chunk.finishes) for chunk in cut.classes)
        shape = cut.split._replace(stage_layers=None)
        key = (shape, cut.most_layers, cut.of, cut.ranks, cut.kind_of_rank, ends)
        found.setdefault(key, []).append(cut)
    return [tuple(own) for own in found.values()]


def is_ordered(config: ModelConfig) -> bool:
    """Whether every sparse block comes after every dense one."""
    sparse = [config.is_sparse(layer) for layer in range(config.num_hidden_layers)]
    return sparse == sorted(sparse)


def breaks_of(classes: Iterable[Chunk], most: int) -> list[int]:
    """Numbers of blocks computed again at which a chunk's seconds change their slope, 0 and most with
    them."""
    found = {0, most}
    for chunk in classes:
        found |= {chunk.dense, chunk.layers}
    return sorted(one for one in found if one <= most)
