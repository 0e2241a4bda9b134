"""Chunks of a pipeline as sums over a cell's figures, for every number of blocks computed again.

Arrays have the shape (rows, K): a row a cell, a column a number k of blocks of each chunk that are computed
again, the first k. Blocks stand in a chunk dense before sparse, computed again before others.
Checked by: property/test_search_grid.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from memcalc.engine.search.cells import (
    BEGINS,
    DENSE,
    DENSE_AGAIN,
    FINISHES,
    SPARSE,
    SPARSE_AGAIN,
    WHOLE,
    Table,
)
from memcalc.engine.search.weights import Chunk

#: Bottom to top.
_ORDER = (DENSE_AGAIN, DENSE, SPARSE_AGAIN, SPARSE)


class ChunkBytes(NamedTuple):
    """A chunk's forward and backward: what forward leaves, and peaks over what was there before each."""

    kept: Any
    forward_peak: Any
    backward_peak: Any
    dispatchers: Any


class ChunkTimes(NamedTuple):
    """Seconds of a chunk's micro-batch, and of its blocks alone: what exchanges may run beside."""

    forward_s: Any
    backward_s: Any
    blocks_forward_s: Any
    blocks_backward_s: Any


def counts_of(chunk: Chunk, again: Any) -> dict[int, Any]:
    """How many blocks of each kind, shape (1, K). again: (K,).

    Of a chunk whose blocks are an array of shape (rows, 1): (rows, K).
    """
    import numpy as np

    dense = np.minimum(again, chunk.dense)
    sparse = np.clip(again - chunk.dense, 0, chunk.sparse)
    found = {
        DENSE_AGAIN: dense, DENSE: chunk.dense - dense, SPARSE_AGAIN: sparse,
        SPARSE: chunk.sparse - sparse,
    }  # fmt: skip
    return {kind: np.atleast_2d(count) for kind, count in found.items() if count.any()}


class Sums:
    """Sums over the figures of some cells."""

    def __init__(self, table: Table, again: Any) -> None:
        import numpy as np

        self.table, self.again = table, again
        self.nothing = np.zeros((len(table.family), 1))

    def column(self, *name: Any) -> Any:
        """A figure, shape (rows, 1); 0 where no cell has it."""
        found = self.table.columns.get(name if len(name) > 1 else name[0])
        return self.nothing if found is None else found[:, None]

    def end(self, chunk: Chunk) -> int | None:
        """Which ends a chunk has, of cells.BEGINS, FINISHES, WHOLE; None: an inner one."""
        if chunk.begins:
            return WHOLE if chunk.finishes else BEGINS
        return FINISHES if chunk.finishes else None

    def bytes(self, chunk: Chunk) -> ChunkBytes:
        """Bytes of a chunk."""
        counts = counts_of(chunk, self.again)
        kept, forward = self._forward(chunk, counts)
        dispatchers: Any = 0.0
        for kind, count in counts.items():
            dispatchers = dispatchers + count * self.column(kind, "dispatcher")
        return ChunkBytes(kept, forward, self._backward(chunk, counts), dispatchers)

    def _forward(self, chunk: Chunk, counts: dict[int, Any]) -> tuple[Any, Any]:
        import numpy as np

        level: Any = np.zeros((len(self.table.family), len(self.again)))
        peak = level
        end = self.end(chunk)
        if chunk.begins:
            peak = np.maximum(peak, self.column("end", end, "first", "forward_peak"))
            level = level + self.column("end", end, "first", "kept")
        for kind in _ORDER:
            if kind in counts:
                count, kept = counts[kind], self.column(kind, "kept")
                top = level + (count - 1) * kept + self.column(kind, "forward_peak")
                peak = np.where(count > 0, np.maximum(peak, top), peak)
                level = level + count * kept
        if chunk.finishes:
            peak = np.maximum(peak, level + self.column("end", end, "last", "forward_peak"))
            level = level + self.column("end", end, "last", "kept")
        return level, peak

    def _backward(self, chunk: Chunk, counts: dict[int, Any]) -> Any:
        """Peak over what is alive as backward begins, the chunk's own forward included.

        Without a head the topmost block gives the stream on, which stays when the block's own goes: it has
        a peak of its own.
        """
        import numpy as np

        level: Any = np.zeros((len(self.table.family), len(self.again)))
        peak, end = level, self.end(chunk)
        stays, below_top = self.column("stream"), chunk.finishes
        if chunk.finishes:
            peak = np.maximum(peak, self.column("end", end, "last", "backward_peak"))
            level = level - self.column("end", end, "last", "kept")
            level = level + self.column("end", end, "last more")
        handed: Any = np.zeros((1, len(self.again)))
        for kind in reversed(_ORDER):
            if kind not in counts:
                continue
            count, kept = counts[kind], self.column(kind, "kept")
            own = self.column(kind, "backward_peak")
            first = level + handed * stays + own
            if not below_top:
                first = np.where(handed > 0, first, level + self.column(kind, "top_peak"))
                handed = np.where(count > 0, 1.0, handed)
            peak = np.where(count > 0, np.maximum(peak, first), peak)
            second = level - kept + handed * stays + own
            peak = np.where(count > 1, np.maximum(peak, second), peak)
            level = level - count * kept
        if chunk.begins:
            last = level + handed * stays + self.column("end", end, "first", "backward_peak")
            peak = np.maximum(peak, last)
        return peak

    def times(self, chunk: Chunk, launch_s: float, copied: tuple[Any, int]) -> ChunkTimes:
        """Seconds of a chunk. launch_s: of a kernel, 0 where graphs launch them; copied: seconds that
        the way states are held adds to a backward, (rows, 1), and its kernels."""
        import numpy as np

        counts = counts_of(chunk, self.again)
        blocks = self._blocks(counts)
        end = self.end(chunk)
        ends = [self.column("end", end, name) if end is not None else 0.0 for name in _SECONDS]
        for at, more in zip((1, 3), self._edges(chunk), strict=True):
            blocks[at] = blocks[at] + more
        forward, backward = blocks[0], blocks[1] + copied[0]
        forward_launch = launch_s * (blocks[2] + ends[2])
        backward_launch = launch_s * (blocks[3] + ends[3] + copied[1])
        inside_f, inside_b = blocks[4] + ends[4], blocks[5] + ends[5]
        forward_s, backward_s = forward + ends[0], backward + ends[1]
        waits_f = np.maximum(forward_launch - forward_s - inside_f, 0.0)
        waits_b = np.maximum(backward_launch - backward_s - inside_b, 0.0)
        return ChunkTimes(
            forward_s + waits_f + inside_f,
            backward_s + waits_b + inside_b,
            forward + inside_f + waits_f,
            backward + inside_b + waits_b,
        )

    def _edges(self, chunk: Chunk) -> tuple[Any, Any]:
        """Seconds and launches of backward that the lowest and the topmost block have more."""
        import numpy as np

        plain_top = np.atleast_2d(self.again < chunk.layers)
        found = []
        for name in ("backward_s", "backward_launches"):
            more: Any = 0.0
            if not chunk.begins:
                more = more + self.column("bottom", name)
            if not chunk.finishes:
                more = more + plain_top * self.column("top", name)
            found.append(more)
        return found[0], found[1]

    def _blocks(self, counts: dict[int, Any]) -> list[Any]:
        sums: list[Any] = [0.0] * len(_SECONDS)
        for kind, count in counts.items():
            for at, name in enumerate(_SECONDS):
                sums[at] = sums[at] + count * self.column(kind, name)
        return sums


#: The fields of block_figures.Seconds.
_SECONDS = (
    "forward_s", "backward_s", "forward_launches", "backward_launches", "forward_inside_s",
    "backward_inside_s",
)  # fmt: skip
