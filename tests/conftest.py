"""One thread a test process, and which of the slow tests a run takes.

Several processes share the cores, and threads that wait for each other spin. Traces are kept as long as a
process runs. Looking through all of them for cycles, as often as Python does by itself, takes a part of
the time that grows with them.
"""

import gc
import os

import pytest

from tests.draws import chosen

os.environ.setdefault("OMP_NUM_THREADS", "1")
gc.set_threshold(50_000, 50, 100)


def pytest_collection_finish() -> None:
    """What was made until here stays: no collection looks through it, of which real steps make many."""
    gc.freeze()


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """So does what a file leaves behind, less its garbage."""
    if nextitem is None or nextitem.path != item.path:
        gc.collect()
        gc.freeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of tests that run PyTorch over many cases take some, unless all or single ones are asked for."""
    if any("::" in word for word in config.args):
        return
    kept = chosen(items)
    left_out = set(items) - set(kept)
    if left_out:
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
        items[:] = kept
