"""Run the command line in this process and look at what it wrote."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from memcalc.__main__ import main


@dataclass(frozen=True)
class Outcome:
    """Status, stdout and stderr of one command."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one line of a refused command; asserts that it is one line and nothing else."""
        lines = self.err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: "), self.err
        assert self.out == ""
        return lines[0].removeprefix("error: ")


@pytest.fixture
def memcalc(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    def run(*words: object) -> Outcome:
        capsys.readouterr()
        status = main([str(word) for word in words])
        captured = capsys.readouterr()
        return Outcome(status, captured.out, captured.err)

    return run


def timeline_rows(path: Path, peak_bytes: int) -> list[dict[str, str]]:
    """Rows of a --timeline file; asserts that its sums run on and that they reach this peak."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    live = 0
    for number, row in enumerate(rows):
        live += int(row["allocated_bytes"])
        assert (int(row["index"]), int(row["live_bytes"])) == (number, live)
    assert max(int(row["live_bytes"]) for row in rows) == peak_bytes
    return rows
