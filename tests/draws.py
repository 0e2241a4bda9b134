"""How many of the drawn configurations a run of the tests takes: some, or all of them.

`MEMCALC_DRAWS=all python -m pytest` takes all; the numbers of configurations in README and docs are of that.
Otherwise a fifth of what a test draws, and of the cases of a slow test an eighth. Which ones is fixed:
spread over all, the first among them.
"""

from __future__ import annotations

import os
from collections import defaultdict

import pytest

ALL = os.environ.get("MEMCALC_DRAWS") == "all"
#: Tests that run PyTorch.
SLOW = ("tests/oracle/", "tests/harness/", "tests/cli/test_distributed.py")
SHARE = 5
OF_SLOW = 8


def draws(count: int) -> int:
    """Of so many that an item goes through, how many it takes now."""
    return count if ALL else -(-count // SHARE)


def drawn(count: int) -> range:
    """Numbers of the drawn items of a test, spread over all."""
    return range(0, count, 1 if ALL else SHARE)


def chosen(items: list[pytest.Item]) -> list[pytest.Item]:
    """What a run takes of these items, in their order."""
    if ALL:
        return items
    of_test: dict[str, list[str]] = defaultdict(list)
    for item in items:
        if item.nodeid.startswith(SLOW):
            of_test[item.nodeid.partition("[")[0]].append(item.nodeid)
    left_out: set[str] = set()
    for names in of_test.values():
        kept = -(-len(names) // OF_SLOW)
        left_out |= set(names) - {names[i * len(names) // kept] for i in range(kept)}
    return [item for item in items if item.nodeid not in left_out]
