"""Freed memory stays with the process inside the context, and goes back after it."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from memcalc.harness import malloc
from memcalc.harness.malloc import kept

ROOT = Path(__file__).parents[2]
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc only")


#: Page faults of filling a fresh tensor after others of its size were freed, usually and inside; pages that
#: leaving gives back. In a process of its own: what one freed before decides where glibc finds room.
_PROGRAM = """
import resource, torch
from memcalc.harness.malloc import kept

def faults():
    for _ in range(12):  # the first seven leave their padding in a cache of small blocks
        torch.empty(128 << 18).fill_(1.0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(128 << 18).fill_(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def pages():
    return int(open("/proc/self/statm").read().split()[1])

usual = faults()
with kept():
    inside, held = faults(), pages()
print(usual, inside, held - pages())
"""


@glibc
def test_a_kept_block_costs_no_page_faults_and_goes_back_at_the_end() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True, cwd=ROOT
    )
    usual, inside, given_back = map(int, done.stdout.split())
    assert inside < usual / 10
    assert given_back > usual / 2


class _Libc:
    def __init__(self) -> None:
        self.said: list[tuple[int, int]] = []
        self.trimmed = 0

    def mallopt(self, parameter: int, value: int) -> int:
        self.said.append((parameter, value))
        return 1

    def malloc_trim(self, pad: int) -> int:
        self.trimmed += 1
        return 1


def test_only_the_outermost_context_changes_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    libc = _Libc()
    monkeypatch.setattr(malloc, "_libc", lambda: libc)
    with kept():
        with kept(), kept():
            pass
        assert libc.said == list(malloc._KEEP) and libc.trimmed == 0
    assert libc.said == [*malloc._KEEP, *malloc._USUAL] and libc.trimmed == 1


def test_an_error_inside_restores_it(monkeypatch: pytest.MonkeyPatch) -> None:
    libc = _Libc()
    monkeypatch.setattr(malloc, "_libc", lambda: libc)
    with pytest.raises(KeyboardInterrupt), kept():
        raise KeyboardInterrupt
    assert libc.said[-1] == malloc._USUAL[-1] and malloc._Nested.depth == 0


@pytest.mark.parametrize("wanted", [True, False])
def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch, wanted: bool) -> None:
    libc: Any = None if wanted else _Libc()
    monkeypatch.setattr(malloc, "_libc", lambda: libc)
    with kept(wanted):
        assert malloc._Nested.depth == 0
    assert libc is None or libc.said == []
