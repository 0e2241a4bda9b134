"""How a run of several ranks ends: rank 0 gathers every rank's record, whatever happened to them.

A thread of each rank looks four times a second whether another rank has failed or torchrun sent a
signal. Then its own rank, which may be waiting in a collective that never ends, gets a moment to end by
itself; after that the thread hands in the record as far as it is and ends the process. So no rank
hangs, and a rank that runs out of memory, or is killed, leaves the others' records complete.
If rank 0 itself is killed nothing is written. Checked by: harness/test_distributed.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from memcalc.harness.ranks.board import Board
from memcalc.harness.ranks.layout import World
from memcalc.harness.ranks.rank_records import STOPPED
from memcalc.harness.ranks.ranks import TIMEOUT_S
from memcalc.harness.records import finite

_LOOK_EVERY_S = 0.25
#: How long a rank may take to end by itself once another has failed or a signal came.
_GRACE_S = 2.0
#: How long rank 0 then waits for the others' records, and they for rank 0 to write them.
_GATHER_S, _WRITTEN_S = 5.0, 10.0
#: Status of a process whose rank 0 said nothing more.
_FAILED = 1

#: (records by rank, None of those that sent none; where each last was; the first to fail) -> status
Finish = Callable[[Sequence[dict[str, Any] | None], Sequence[str | None], int | None], int]


class Ending:
    """The end of one rank's run; `record` and `stage` are kept up to date by the run."""

    def __init__(self, board: Board, world: World, finish: Finish) -> None:
        self.board, self.world, self.finish = board, world, finish
        self.record: dict[str, Any] | None = None
        self._stage: str | None = None
        self._mine = threading.Lock()  # taken by whoever ends this rank, once
        self._stopped = threading.Event()
        self._signalled = False
        self._thread = threading.Thread(target=self._look, name="memcalc-ranks", daemon=True)

    def start(self) -> None:
        """Look out from now on. On the main thread: signals come here first."""
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._write_end, False)
        self._before = signal.signal(signal.SIGTERM, lambda number, frame: None)
        self._wakeup = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        self._thread.start()

    def stop(self) -> None:
        """Look no longer; signals are as they were."""
        self._stopped.set()
        signal.set_wakeup_fd(self._wakeup)
        signal.signal(signal.SIGTERM, self._before)
        self._thread.join(timeout=_LOOK_EVERY_S * 4)
        os.close(self._write_end)
        if not self._thread.is_alive():
            os.close(self._read_end)

    def at(self, stage: str) -> None:
        """The run is at a stage; the other ranks can read it."""
        self._stage = stage
        self.board.put(f"stage/{self.world.rank}", stage)

    def announce(self) -> None:
        """Tell the other ranks that this one cannot go on."""
        self.board.claim("failed", str(self.world.rank))

    def conclude(self, record: dict[str, Any]) -> int:
        """Hand in this rank's record; the exit status, once rank 0 has written all of them."""
        if not self._mine.acquire(blocking=False):
            threading.Event().wait()  # the thread is ending this process
        return self._end(record)

    def _end(self, record: dict[str, Any]) -> int:
        if self.world.rank:
            self.board.put(f"record/{self.world.rank}", json.dumps(finite(record)))
            return self._written()
        posted = self._gathered(record)
        stages = [self.board.get(f"stage/{rank}") for rank in range(self.world.size)]
        status = _FAILED
        try:
            status = self.finish(posted, stages, self._first_to_fail())
        finally:
            self.board.put("written", str(status))
        return status

    def _written(self) -> int:
        """Wait for rank 0; the status it gives the run."""
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            text = self.board.get("written")
            if text is not None:
                return int(text)
            if self._trouble():
                deadline = min(deadline, time.monotonic() + _WRITTEN_S)
            time.sleep(0.05)
        return _FAILED

    def _gathered(self, own: dict[str, Any]) -> list[dict[str, Any] | None]:
        """Every rank's record, or None where none comes in time."""
        found: list[dict[str, Any] | None] = [own] + [None] * (self.world.size - 1)
        deadline = time.monotonic() + TIMEOUT_S
        hurried = False
        while None in found and time.monotonic() < deadline:
            for rank, record in enumerate(found):
                text = self.board.get(f"record/{rank}") if record is None else None
                if text is not None:
                    found[rank] = json.loads(text)
            if not hurried and self._trouble():
                hurried, deadline = True, time.monotonic() + _GATHER_S
            time.sleep(0.02)
        return found

    def _first_to_fail(self) -> int | None:
        text = self.board.get("failed")
        return None if text is None else int(text)

    def _trouble(self) -> bool:
        return self._signalled or self.board.get("failed") is not None

    def _look(self) -> None:
        """The thread: wait for trouble, give the main thread a moment, then end this process."""
        while not self._stopped.is_set():
            with contextlib.suppress(OSError, ValueError):
                ready, _, _ = select.select([self._read_end], [], [], _LOOK_EVERY_S)
                if ready and os.read(self._read_end, 16) and not self._stopped.is_set():
                    self._signalled = True
            try:
                trouble = self._trouble()
            except Exception:  # the store is gone, and torchrun with it
                trouble = True
            if trouble and not self._stopped.wait(_GRACE_S):
                if self._mine.acquire(blocking=False):
                    self._force()
                return

    def _force(self) -> None:
        status = _FAILED
        try:
            record = self._as_it_is()
            self.announce()
            status = self._end(record)
        except BaseException as error:
            print(f"error: rank {self.world.rank}: {error}", file=sys.stderr)
        finally:
            leave_process(status)

    def _as_it_is(self) -> dict[str, Any]:
        """The record as far as the run came; why it went no further."""
        first = self._first_to_fail()
        why = "torchrun ended the run" if first is None else f"rank {first} failed"
        error = {"type": STOPPED, "message": why, "stage": self._stage or "start",
                 "phase": None, "where": None}  # fmt: skip
        for _ in range(20):
            with contextlib.suppress(RuntimeError):  # the run adds an entry while it is read
                record: dict[str, Any] = finite(self.record or {})
                return {**record, "status": "failed", "error": record.get("error") or error}
        return {"status": "failed", "error": error}


def leave_process(status: int) -> None:
    """End this process at once. Interpreters with gloo's threads sometimes abort in their own end."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(status)
