"""What the tests of all worked cases share: the cases of a letter, and what must hold for each.

Each file test_worked_*.py has the cases of one letter as `test_case[W9]` and so on, computed from the tables
in benchmarks/worked, and beside them the finer tests of the same questions.
"""

from __future__ import annotations

import pytest

from benchmarks.worked.case import Case, compute, written
from benchmarks.worked.cases import KINDS
from benchmarks.worked.page import PAGE, ours_on, section_of

STALE = "docs/worked_cases.md is not what the tables give; write it: python -m benchmarks.worked"


def cases(letter: str) -> pytest.MarkDecorator:
    """A parameter `case` for each case of this letter; the ids are their numbers."""
    own = KINDS[letter][1]
    return pytest.mark.parametrize("case", own, ids=[case.number for case in own])


def hold(case: Case) -> None:
    """Every figure is as near as the case allows, what explains it is so, and the page has it."""
    ours = []
    for figure in case.figures:
        found = compute(figure)
        said = f"{case.number}, {figure.asked}: {written(figure.theirs)} {figure.unit}"
        assert found.allowed, (
            f"{said}, ours {written(found.ours)}; {figure.read} of {figure.commands}"
        )
        assert found.proven, f"{said}: not so: {figure.shown}"
        if found.difference is not None and abs(found.difference) > 0.01:
            assert figure.why, f"{said}, ours {written(found.ours)}: no reason is given"
        ours.append(written(found.ours))
    assert ours_on(section_of(PAGE.read_text(encoding="utf-8"), case)) == ours, STALE
