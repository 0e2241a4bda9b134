"""Rows as a user writes them, for the tests of accuracy."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from memcalc.accuracy.columns import BY_NAME, read_cell
from memcalc.accuracy.rows import Row

#: A run that can be priced in milliseconds.
SMALL: dict[str, object] = {
    "id": "one", "source": "mine", "model": "gpt2", "seq": 128, "micro_batch": 2,
    "num_hidden_layers": 2, "precision": "bf16", "mem_gb": 1.5, "mem_unit": "GiB",
    "mem_kind": "allocated",
}  # fmt: skip


def row(line: int = 2, **changed: object) -> Row:
    """SMALL with some cells changed; None leaves one out. Underscored names as the columns'."""
    stated = {k: v for k, v in {**SMALL, **changed}.items() if v is not None}
    cells = {k: read_cell(BY_NAME[k], str(v)) for k, v in stated.items()}
    return Row(line, cells)


def write(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    """A CSV file of these rows, every column that any of them states."""
    header = list(dict.fromkeys(name for one in rows for name in one))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, header)
        writer.writeheader()
        writer.writerows(rows)
    return path
