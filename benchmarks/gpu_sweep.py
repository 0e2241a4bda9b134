"""Everything a GPU one has for ten minutes should answer, in order of value, resumed call by call.

    python -m benchmarks.gpu_sweep --minutes 9 --out DIR [--have RECORDS_OR_FOLDER ...]
    python -m benchmarks.gpu_sweep --tiny --device cpu --out DIR      the whole programme, tiny

Stages: the open questions about PyTorch's memory; a memory sweep of 154 setups, twelve of them
fine-tuning, each held against this project's estimate; the calibration; step times, phases and operators
of some 38 of the setups; eleven generations through a cache, bytes and seconds of each pass; MFU
runs against transformers; the two-depth residual. About four calls of nine minutes: give each the earlier
ones' folders as --have, and it goes on where they stopped. Records are kept as they come, so a call that
is cut off loses the job it was at.
In DIR, at most eight files of at most 16 MiB: records.jsonl, questions.jsonl, timing.jsonl, mfu.jsonl,
calibration.toml, trace.json.gz, summary.json, log.txt.
Needs torch, numpy, rich, typer, pandas, matplotlib; transformers for the rival. The parent process
never touches the GPU. Not yet run on a GPU. Checked by: tests/harness/test_gpu_sweep.py.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.sweep import decode_stage, report, stages, time_stages, timing_stage
from benchmarks.sweep.children import Clock, Log
from benchmarks.sweep.kept import Kept
from benchmarks.sweep.program import run_command
from benchmarks.sweep.stages import Sweep
from memcalc.errors import ConfigError, unknown

STAGES: dict[str, Callable[[Sweep], None]] = {
    "questions": stages.questions,
    "memory": stages.memory,
    "calibration": time_stages.calibration,
    "timing": timing_stage.timing,
    "decode": decode_stage.decode,
    "mfu": time_stages.mfu,
    "residual": time_stages.residual,
}


@contextlib.contextmanager
def progress(sweep: Sweep) -> Iterator[None]:
    """A bar on stderr with the time left of the stage; nothing where that is no terminal."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
               TimeElapsedColumn(), TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def tell(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done, total=total)

        sweep.tell = tell
        yield


def finish(sweep: Sweep, interrupted: bool) -> dict[str, Any]:
    """Write summary.json: what each stage did, errors of the estimate, rows to be explained."""
    rows = report.errors(sweep.kept.of("measure", sweep.name))
    found = {
        "schema": 1, "device": sweep.facts, "tiny": sweep.tiny, "interrupted": interrupted,
        "seconds": sweep.clock.spent_s(), "stages": sweep.counts,
        "records_dropped": sweep.kept.dropped, "errors": report.summary(rows),
        "times": report.times(sweep.kept.of("timing", sweep.name)),
        "over_2_pct": report.large(rows), "controls": report.controls(rows),
    }  # fmt: skip
    path = sweep.out / "summary.json"
    path.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    return found


def show(sweep: Sweep, found: dict[str, Any]) -> None:
    """The tables on stdout: predicted over measured, MFU, and what each stage did."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 120, soft_wrap=False)
    if found["errors"]:
        console.print(report.table(found["errors"]))
    runs = [r for r in sweep.kept.of("mfu", sweep.name) if r.get("status") == "ok"]
    if runs:
        from benchmarks.harness_mfu import table

        console.print(table(runs))
    if (taken := found["times"]) is not None:
        said = f"median |error| {taken['median']:.1%}, bias {taken['bias']:+.1%}"
        console.print(f"step times by default rates: {taken['n']} setups, {said}", highlight=False)
    for stage, tally in sweep.counts.items():
        said = ", ".join(f"{count} {what}" for what, count in tally.items())
        console.print(f"{stage}: {said}", highlight=False)


def sweep_all(sweep: Sweep, chosen: list[str]) -> bool:
    """Run the stages chosen; whether Ctrl-C ended them. Raises ConfigError for a wrong device."""
    try:
        stages.find_device(sweep)
        with progress(sweep):
            for name in chosen:
                sweep.log.line(f"stage {name}, {sweep.clock.left_s():.0f} s left")
                STAGES[name](sweep)
    except KeyboardInterrupt:
        return True
    finally:
        sweep.close()
    return False


def command(
    out: Annotated[Path, typer.Option(help="Folder for the files")],
    minutes: Annotated[float, typer.Option(help="Stop in time for this")] = 9.0,
    have: Annotated[
        list[Path] | None, typer.Option(help="Files or folders of earlier calls; may be repeated")
    ] = None,
    device: Annotated[str, typer.Option(help="cuda, cuda:1 or cpu")] = "cuda",
    tiny: Annotated[bool, typer.Option(help="Tiny sizes, for trying the program")] = False,
    stage: Annotated[
        list[str] | None, typer.Option(help=f"Only these of {', '.join(STAGES)}")
    ] = None,
) -> int:
    """Measure what a GPU can answer in the minutes given, and go on from earlier calls."""
    for name in stage or ():
        if name not in STAGES:
            raise unknown("--stage", name, STAGES)
    if not 0 < minutes <= 24 * 60:
        raise ConfigError(f"--minutes: got {minutes:g}; rule: above 0, at most 1440")
    clock = Clock(minutes)
    kept = Kept(out, have or [])
    log = Log(out / "log.txt")
    sweep = Sweep(device, out.resolve(), clock, log, kept, tiny)
    interrupted = sweep_all(sweep, stage or list(STAGES))
    show(sweep, finish(sweep, interrupted))
    log.close()
    return 130 if interrupted else 0


def main(words: list[str]) -> int:
    """The program; the status it ends with."""
    return run_command(command, words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
