"""The sweep's hold on its children: ask one a job with a time limit, kill it when it hangs.

Also the clock of the whole run and the log all children's stderr goes to. No torch.
Checked by: tests/harness/test_gpu_sweep.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[2]
#: A child gets this long to end by itself when its stdin closes.
_GRACE_S = 5.0
_LOG_LIMIT = 4 << 20
#: What a child's environment has unless the caller's says else: no progress lines of the profiler.
_ENVIRONMENT = {"KINETO_LOG_LEVEL": "99", "PYTHONUNBUFFERED": "1"}


class Clock:
    """Time left of a run; `stretch`: how much longer jobs of a kind take than guessed, learnt here."""

    def __init__(self, minutes: float) -> None:
        self.start = time.monotonic()
        self.end = self.start + 60 * minutes
        self._stretch: dict[str, float] = {}

    def left_s(self) -> float:
        """Seconds until the deadline; negative after it."""
        return self.end - time.monotonic()

    def spent_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.start

    def stretch(self, kind: str) -> float:
        """The factor on guesses of a kind of job; 1 before the first."""
        return self._stretch.get(kind, 1.0)

    def allows(self, kind: str, guess_s: float, extra_s: float = 0.0) -> bool:
        """Whether a job guessed to take so long, and what it takes beside it, ends in time."""
        return self.left_s() > guess_s * self.stretch(kind) + extra_s

    def learn(self, kind: str, guess_s: float, spent_s: float) -> None:
        """Take what a job took into account; one job moves the factor by a tenth of the way."""
        seen = min(10.0, max(0.1, spent_s / max(guess_s, 0.1)))
        self._stretch[kind] = min(5.0, max(0.5, 0.9 * self.stretch(kind) + 0.1 * seen))


class Log:
    """The text log of a run, cut off at a few MiB so that it can be carried away."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._file = path.open("a", encoding="utf-8", errors="replace")
        self._room = _LOG_LIMIT - path.stat().st_size

    def write(self, text: str) -> None:
        """Append text and flush it."""
        with self._lock:
            if self._room > 0 and not self._file.closed:
                self._file.write(text)
                self._file.flush()
                self._room -= len(text)

    def line(self, text: str) -> None:
        """A line of the sweep's own, with the time of day."""
        self.write(f"[{time.strftime('%H:%M:%S')}] {text}\n")

    def close(self) -> None:
        """No more lines."""
        with self._lock:
            self._file.close()


class ChildFailed(Exception):
    """A child ended or hung in the middle of a job; how says which."""

    def __init__(self, how: str, detail: str) -> None:
        self.how, self.detail = how, detail
        super().__init__(f"{how}: {detail}")


class Child:
    """A worker process in a session of its own."""

    def __init__(self, device: str, log: Log, preload: bool = False) -> None:
        self.log, self.jobs, self.tail = log, 0, ""
        extra = ["--preload"] if preload else []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.sweep.worker", "--device", device, *extra],
            cwd=ROOT, env={**_ENVIRONMENT, **os.environ}, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            encoding="utf-8", errors="replace",
        )  # fmt: skip
        self._replies: queue.Queue[str | None] = queue.Queue()
        for target, stream in (
            (self._read, self.process.stdout),
            (self._pump, self.process.stderr),
        ):
            threading.Thread(target=target, args=(stream,), daemon=True).start()

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            self._replies.put(line)
        self._replies.put(None)

    def _pump(self, stream: IO[str]) -> None:
        for line in stream:
            self.tail = (self.tail + line)[-2000:]
            self.log.write(line)

    def ask(self, job: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """The answer to a job. Raises ChildFailed when the child ends or takes too long."""
        self.jobs += 1
        try:
            assert self.process.stdin is not None
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
            line = self._replies.get(timeout=max(0.01, timeout_s))
        except queue.Empty:
            self.kill()
            raise ChildFailed("timeout", f"no answer in {timeout_s:.0f} s") from None
        except OSError:
            line = None
        if line is None:
            code = self._ended()
            said = self.tail.strip().splitlines()
            raise ChildFailed("died", f"exit status {code}; {said[-1][:300] if said else ''}")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _ended(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(timeout=_GRACE_S)
        self.kill()
        return self.process.returncode

    def kill(self) -> None:
        """End the child and whatever it started, at once."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=_GRACE_S)

    def close(self) -> None:
        """Let the child end; kill it when it does not."""
        with contextlib.suppress(OSError):
            if self.process.stdin is not None:
                self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=_GRACE_S)
        self.kill()
