"""Run one command line in this process, in a folder of its own, and say what is wrong with how it ended.

Wrong is: a status other than 0, 2 and 3; status 2 without exactly one `error:` line; an `error:` line
with 0 or 3; a traceback, control characters or a result that is no JSON; more seconds of the processor
than the limit; a file opened for writing, a process or a connection outside what was asked for.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import memcalc.__main__ as program
from tests.fuzz.guard import GUARD, Stop, sandbox, watched

__all__ = ["Case", "Ended", "Find", "run", "sandbox", "wrong"]

#: Seconds of the processor that a case may take; refusals are said sooner.
LIMIT_S, REFUSAL_S = 20.0, 4.0
_NUMBER = re.compile(r"[-+]?(\d|\.\d)[\d.e+-]*%?")


class Case(NamedTuple):
    """One input: the files that lie in the folder, and the words after `memcalc`."""

    words: list[str]
    files: dict[str, bytes] = {}  # noqa: RUF012  # never changed


class Find(NamedTuple):
    """What is wrong with a case: its kind, and where or how, so that equal ones are told once."""

    kind: str
    detail: str


class Ended(NamedTuple):
    """How a case ended."""

    status: int
    out: str
    err: str
    seconds: float
    error: BaseException | None


Judged = tuple[Ended, Find | None]


def run(case: Case, folder: Path, limit_s: float = LIMIT_S, keep: bool = False) -> Judged:
    """Run a case in the folder of a sandbox; how it ended, and what is wrong with that, if anything is.

    keep: what lies in the folder stays there.
    """
    for name, data in case.files.items():
        (folder / name).write_bytes(data)
    try:
        ended = _ended(case.words, folder.parent, limit_s)
    finally:
        for path in () if keep else folder.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    return ended, wrong(case, ended, limit_s)


def _ended(words: list[str], folder: Path, limit_s: float) -> Ended:
    caught: list[BaseException] = []
    said = program._failed

    def failed(error: BaseException, text: str, status: int, debug: bool) -> int:
        caught.append(error)
        return said(error, text, status, debug)

    out, err = io.StringIO(), io.StringIO()
    begin = time.process_time()
    status = -1
    program._failed = failed
    try:
        with (
            watched(folder), _limited(limit_s),
            contextlib.redirect_stdout(out), contextlib.redirect_stderr(err),
        ):  # fmt: skip
            status = program.main(words)
    except BaseException as error:
        caught.append(error)
        if isinstance(error, KeyboardInterrupt):
            raise
    finally:
        program._failed = said
    seconds = time.process_time() - begin
    error = caught[-1] if caught else None
    return Ended(status, out.getvalue(), err.getvalue(), seconds, error)


@contextlib.contextmanager
def _limited(limit_s: float) -> Iterator[None]:
    """Stop what uses the processor for longer, or waits six times as long; in the main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise Stop(f"longer than {limit_s:g} s")

    timers = ((signal.ITIMER_PROF, signal.SIGPROF, 1), (signal.ITIMER_REAL, signal.SIGALRM, 6))
    before = [signal.signal(number, stop) for _, number, _ in timers]
    for timer, _, times in timers:
        signal.setitimer(timer, limit_s * times)
    try:
        yield
    finally:
        for (timer, number, _), old in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, old)


def wrong(case: Case, ended: Ended, limit_s: float = LIMIT_S) -> Find | None:
    """What is wrong with how a case ended; None where nothing is."""
    for judge in (_escapes, _status, _lines, _characters, _form, _pace):
        found = judge(case, ended) if judge is not _pace else _pace(case, ended, limit_s)
        if found is not None:
            return found
    return None


def _escapes(case: Case, ended: Ended) -> Find | None:
    return Find("outside", GUARD.seen[0]) if GUARD.seen else None


def _status(case: Case, ended: Ended) -> Find | None:
    if isinstance(ended.error, Stop):
        return Find("hang", place_of(ended.error))
    if ended.status not in (0, 2, 3):
        said = f"{type(ended.error).__name__}: {ended.error!s:.90}" if ended.error else ""
        return Find(f"status {ended.status}", f"{place_of(ended.error)} {said}")
    return None


def place_of(error: BaseException | None) -> str:
    """The last two places of the package on the way to an error."""
    frames = traceback.extract_tb(error.__traceback__) if error is not None else []
    own = [f for f in frames if f"{os.sep}memcalc{os.sep}" in f.filename]
    return " > ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in own[-2:])


def _lines(case: Case, ended: Ended) -> Find | None:
    lines = ended.err.split("\n")[:-1] if ended.err.endswith("\n") else ended.err.split("\n")
    errors = [line for line in lines if line.startswith("error:")]
    if "--debug" in case.words:
        return None
    if "Traceback (most" in ended.err or "error: internal" in ended.err:
        return Find("traceback", place_of(ended.error))
    if ended.status == 2:
        if len(errors) != 1 or lines[-1] != errors[0] or len(errors[0]) < 12:
            return Find("not one error line", f"{errors!r:.200}")
        if ended.out:
            return Find("a refusal with a result", f"{errors[0]:.80}")
    elif errors:
        return Find("an error line beside a result", f"{errors[0]:.120}")
    return None


def _characters(case: Case, ended: Ended) -> Find | None:
    for name, text in (("stdout", ended.out), ("stderr", ended.err)):
        for c in text:
            if not c.isprintable() and c != "\n":
                at = text.index(c)
                return Find(f"control characters on {name}", f"{text[max(0, at - 40) : at + 9]!r}")
    return None


def _form(case: Case, ended: Ended) -> Find | None:
    if ended.status == 2 or not ended.out or "-o" in case.words or "--out" in case.words:
        return None
    if "--json" in case.words:
        try:
            json.loads(ended.out, parse_constant=_not_finite)
        except ValueError as error:
            return Find("no JSON", str(error)[:80])
    elif "--csv" in case.words and case.words[0] != "export":
        for row in csv.reader(io.StringIO(ended.out)):
            for cell in row:
                if cell[:1] in tuple("=+-@") and cell != "-" and not _NUMBER.fullmatch(cell):
                    return Find("a formula in CSV", cell[:40])
    return None


def _not_finite(text: str) -> None:
    raise ValueError(f"holds {text}")


def _pace(case: Case, ended: Ended, limit_s: float) -> Find | None:
    if ended.seconds > limit_s:
        return Find("slow", f"{case.words[0]}: {ended.seconds:.1f} s")
    if ended.status == 2 and ended.seconds > min(REFUSAL_S, limit_s):
        return Find("slow refusal", f"{case.words[0]}: {ended.err:.80}")
    return None


Make = Callable[[Any], Case]
