"""Python's garbage collector, paused where it would only cost time.

Reference counts free almost all this project makes; the collector looks for cycles among all objects
alive, again and again as more are made. Where thousands of results are made at once, or a clock runs, it
is better off.

Checked by: harness/test_timing.py, property/test_grid.py.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused() -> Iterator[None]:
    """The collector off inside, and as it was afterwards; may be nested."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
