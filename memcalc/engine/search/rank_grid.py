"""Bytes of pipeline ranks beside their states, for many setups at once: rows over arrays.

The most of a rank's rows (stage_rows.py), each a sum of what chunks keep and of the peak of the one at work,
and what lives as long as the run: token ids, buffers, dispatchers. Shapes (rows, K) as in chunk_sums.py.
Checked by: property/test_search_grid.py, against `pipeline_memory.stage_memory`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from memcalc.engine.search.cells import BEGINS
from memcalc.engine.search.chunk_sums import ChunkBytes, Sums
from memcalc.engine.search.splits import Cut
from memcalc.engine.search.stage_rows import StageRows, enough, stage_rows


class Code(NamedTuple):
    """Whose schedules run, and the bytes of what is left of a stream that was sent."""

    stack: str
    stub_bytes: int


def alive_bytes(sums: Sums, batches: Any, cut: Cut, code: Code) -> list[Any]:
    """Most bytes of each kind of rank beside its states, (rows, K)."""
    import numpy as np

    chunks = [sums.bytes(chunk) for chunk in cut.classes]
    found = [np.zeros(chunks[0].kept.shape) for _ in cut.ranks]
    every = np.unique(batches).tolist()
    for number, (rank, kind) in enumerate(cut.ranks):
        capped: dict[Any, list[int]] = {}
        for count in every:
            pipe = enough(cut.split.schedule, cut.pipe(count), rank)
            capped.setdefault(pipe, []).append(count)
        for pipe, counts in capped.items():
            own = np.flatnonzero(np.isin(batches, counts))
            rows = stage_rows(code.stack, cut.split.schedule, pipe, rank, cut.of)
            found[number][own] = _of_rank(sums, chunks, (cut, kind, code), rows, own)
    return found


def _of_rank(
    sums: Sums,
    chunks: Sequence[ChunkBytes],
    of: tuple[Cut, tuple[int, ...], Code],
    rows: StageRows,
    own: Any,
) -> Any:
    """Most bytes of a rank, for some of the rows."""
    import numpy as np

    cut, kind, code = of
    stream = sums.column("stream")[own]
    stub = code.stub_bytes
    most: Any = None
    for row in rows.rows:
        chunk = chunks[row.chunk]
        level = (chunk.forward_peak if row.kind == "F" else chunk.backward_peak)[own]
        for number, times in enumerate(row.in_flight):
            if times:
                level = level + times * chunks[number].kept[own]
        level = level + (row.streams * stream + (row.stubs * stub + row.losses * 4))
        most = level if most is None else np.maximum(most, level)
    finishes = any(cut.classes[one].finishes for one in kind)
    first, last = (rows.most_first, rows.most_last) if len(cut.of) > 1 else (1, 0)
    ids = sums.column("ids")[own] * (
        first * any(cut.classes[one].begins for one in kind) + last * finishes
    )
    tables = sums.column("tables")[own] * len(kind)
    buffer = _buffer(sums, cut, kind)[own]
    dispatchers = sum(chunks[one].dispatchers for one in kind)
    most = most + (ids + tables + buffer + sums.column("angles")[own])
    return most + np.broadcast_to(dispatchers, chunks[0].kept.shape)[own]


def _buffer(sums: Sums, cut: Cut, kind: tuple[int, ...]) -> Any:
    """The largest global buffer of a rank's chunks."""
    import numpy as np

    most: Any = np.zeros((len(sums.table.family), 1))
    for one in set(kind):
        end = sums.end(cut.classes[one])
        place = BEGINS if end is None else end
        most = np.maximum(most, sums.column("end", place, "buffer"))
    return most
