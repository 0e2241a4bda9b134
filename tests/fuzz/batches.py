"""Batches of inputs, each in a process of its own: forked from a warm one, limited in memory.

A child that dies or hangs is a find like any other; what it kept in memory goes with it.
"""

from __future__ import annotations

import functools
import json
import os
import resource
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from memcalc.output.progress import Tell, progress
from tests.fuzz import oracle
from tests.fuzz.oracle import Case, Find

#: Address space of a child, and seconds it may take in all.
_MOST_BYTES, _MOST_S = 6 << 30, 900.0
Draw = Callable[[str, int, int], Case]


class Batch(NamedTuple):
    """Inputs first to first + count of a target."""

    target: str
    seed: int
    first: int
    count: int


@dataclass
class Tally:
    """What came of all inputs. finds: one for each input that has one; first: the input to look at."""

    inputs: Counter[str] = field(default_factory=Counter)
    statuses: dict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    finds: list[Find] = field(default_factory=list)
    first: dict[Find, str] = field(default_factory=dict)
    slowest: tuple[float, str] = (0.0, "")
    rss_mib: int = 0
    told: int = 0  # twentieths of the whole

    def found(self, find: Find, where: str) -> None:
        """Enter a find; a new one is told at once."""
        if find not in self.first:
            print(f"found {where}: {find.kind}: {find.detail}", file=sys.stderr, flush=True)
        self.first.setdefault(find, where)
        self.finds.append(find)


class _Running(NamedTuple):
    batch: Batch
    said: Path
    began: float


def run_batches(
    batches: list[Batch], draw: Draw, root: Path, jobs: int, deadline: float | None, whole: int
) -> Tally:
    """Run all batches, or those that begin before the deadline."""
    warm()
    tally, running, left = Tally(), dict[int, _Running](), list(batches)
    with progress("fuzz") as tell:
        while left or running:
            while left and len(running) < jobs and not _late(deadline):
                _start(left.pop(0), draw, root, running, deadline)
            if not running:
                break
            _reap(running, tally)
            _tell(tell, tally, whole)
    return tally


def warm() -> None:
    """Import what cases import and build each command's reader once, so that a child starts with them."""
    import importlib
    import pkgutil
    import platform

    import matplotlib
    import typer

    from memcalc.cli import app
    from memcalc.cli.options import COMMANDS

    matplotlib.use("agg")
    platform.platform()  # which asks `uname` once
    parts = ("inputs", "engine", "planning", "output", "accuracy", "cli")
    for name in ("pandas", "memcalc.harness.records", "memcalc.harness.record_head", *parts):
        found = importlib.import_module(
            name if "." in name or name == "pandas" else f"memcalc.{name}"
        )
        if name in parts:
            for module in pkgutil.walk_packages(found.__path__, f"memcalc.{name}."):
                importlib.import_module(module.name)
    made = functools.cache(app.command_app)
    app.command_app = functools.cache(lambda command: typer.main.get_command(made(command)))
    for command in COMMANDS:
        app.command_app(command)


def _late(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() >= deadline


def _start(
    batch: Batch, draw: Draw, root: Path, running: dict[int, _Running], deadline: float | None
) -> None:
    said = root / f"{batch.target}-{batch.first}.jsonl"
    said.touch()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            _child(batch, draw, root / f"of-{os.getpid()}", said, deadline)
            status = 0
        finally:
            os._exit(status)
    running[child] = _Running(batch, said, time.monotonic())


def _child(batch: Batch, draw: Draw, folder: Path, said: Path, deadline: float | None) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES))
    sys.stdin = open(os.devnull)  # noqa: SIM115
    with said.open("w") as out, oracle.sandbox(folder) as work:
        for number in range(batch.first, batch.first + batch.count):
            if _late(deadline):
                break
            print(json.dumps({"began": number}), file=out, flush=True)
            case = draw(batch.target, batch.seed, number)
            ended, find = oracle.run(case, work)
            said_now = {"status": ended.status, "seconds": ended.seconds, "find": find,
                        "rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10}  # fmt: skip
            print(json.dumps(said_now), file=out, flush=True)
        print(json.dumps({"whole": True}), file=out)


def _reap(running: dict[int, _Running], tally: Tally) -> None:
    """Wait a moment for a child to end; stop those that take too long."""
    child, _ = os.waitpid(-1, os.WNOHANG)
    if child in running:
        _enter(running.pop(child), tally)
        return
    for number, one in running.items():
        if time.monotonic() - one.began > _MOST_S:
            os.kill(number, signal.SIGKILL)
    time.sleep(0.05)


def _enter(one: _Running, tally: Tally) -> None:
    target, number, whole = one.batch.target, one.batch.first, False
    for line in one.said.read_text().splitlines():
        said = json.loads(line)
        number = said.get("began", number)
        whole = "whole" in said
        if "status" not in said:
            continue
        name = f"{target}:{number}"
        tally.inputs[target] += 1
        tally.statuses[target][said["status"]] += 1
        tally.slowest = max(tally.slowest, (said["seconds"], name))
        tally.rss_mib = max(tally.rss_mib, said["rss"])
        if said["find"]:
            tally.found(Find(*said["find"]), name)
    if not whole:
        tally.found(Find("the process died", target), f"{target}:{number}")
    one.said.unlink()


def _tell(tell: Tell | None, tally: Tally, whole: int) -> None:
    """The bar of a terminal; elsewhere a line each time another twentieth is done."""
    done = sum(tally.inputs.values())
    if tell is not None:
        tell(f"{len(tally.first)} kinds of finds", done, whole)
    elif 20 * done // max(1, whole) > tally.told:
        tally.told = 20 * done // max(1, whole)
        print(
            f"{done} of {whole} inputs, {len(tally.first)} kinds of finds",
            file=sys.stderr,
            flush=True,
        )
