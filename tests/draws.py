"""How many of the drawn configurations a run of the tests takes: a third, or all of them.

`MEMCALC_DRAWS=all python -m pytest` takes all; the numbers of configurations in README and docs are of that.
"""

from __future__ import annotations

import os

ALL = os.environ.get("MEMCALC_DRAWS") == "all"


def draws(count: int) -> int:
    """Of so many that an item goes through, how many it takes now."""
    return count if ALL else -(-count // 3)


def drawn(count: int) -> range:
    """Numbers of the drawn items of a test, spread over all."""
    return range(0, count, 1 if ALL else 3)
