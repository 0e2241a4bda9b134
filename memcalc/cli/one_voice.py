"""Several processes of one torchrun, one voice: what is wrong with the input is said once.

All ranks read the same command line and find the same mistake. Rank 0 says it and ends, upon which
torchrun ends the others, who wait for that. A rank that is still there after a while found something
that rank 0 did not, and says so itself. Without torchrun there is one voice anyway.
Checked by: cli/test_distributed.py.
"""

from __future__ import annotations

import os
import time

#: Longer than rank 0 may take to come as far, with everything still to be imported.
_PATIENCE_S = 30.0


def rank() -> int:
    """This process's rank; 0 outside torchrun."""
    text, size = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    return int(text) if text.isdigit() and size.isdigit() and int(size) > 1 else 0


def named(line: str) -> str:
    """An error's line when it is this rank's turn: at once on rank 0, later and named on others."""
    number = rank()
    if not number:
        return line
    time.sleep(_PATIENCE_S)
    return f"rank {number}: {line}"
