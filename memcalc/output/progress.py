"""A progress bar with the time left, on stderr, where a person looks; else nothing at all."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: (stage, units done, units in all)
Tell = Callable[[str, int, int], None]


def wanted(quiet: bool) -> bool:
    """Whether stderr is a terminal that can redraw a line and nobody asked for quiet."""
    return not quiet and os.environ.get("TERM") != "dumb" and sys.stderr.isatty()


@contextmanager
def progress(title: str, quiet: bool = False, after_s: float = 0.0) -> Iterator[Tell | None]:
    """A bar for one run: the caller tells it (stage, done, total). None where it is not shown.

    after_s: work that ends sooner shows none.
    """
    if not wanted(quiet):
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    shown = Progress(
        TextColumn("{task.description}", markup=False), BarColumn(bar_width=24),
        MofNCompleteColumn(), TimeRemainingColumn(elapsed_when_finished=True),
        console=Console(stderr=True), transient=True, refresh_per_second=4,
    )  # fmt: skip
    begin = time.monotonic()
    task = shown.add_task(title, total=None)

    def tell(stage: str, done: int, total: int) -> None:
        shown.update(task, description=f"{title}: {stage}", completed=done, total=total)
        if not shown.live.is_started and time.monotonic() - begin >= after_s:
            shown.start()

    if not after_s:
        shown.start()
    try:
        yield tell
    finally:
        shown.stop()
