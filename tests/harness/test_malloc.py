"""Freed memory stays with the process inside the context, and goes back after it."""

from __future__ import annotations

import platform
import resource
from typing import Any

import pytest
import torch

from memcalc.harness import malloc
from memcalc.harness.malloc import kept

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc only")


def _faults(megabytes: int = 128) -> int:
    """Page faults of filling a fresh tensor after others of its size were freed."""
    for _ in range(3):
        torch.empty(megabytes << 18).fill_(1.0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(megabytes << 18).fill_(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@glibc
def test_a_kept_block_costs_no_page_faults() -> None:
    usual = _faults()
    with kept():
        inside = _faults()
    after = _faults()
    assert inside < usual / 10 and after > usual / 2


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
