"""How well a step's time on a CPU is predicted: random small decoders, none of them used for fitting.

    python -m benchmarks.cpu_time                     calibrate here, then 20 decoders, a table
    python -m benchmarks.cpu_time --calibration FILE  with a calibration of this CPU made before
    python -m benchmarks.cpu_time --json --write      one JSON object; and append to cpu_time.jsonl

Decoders are drawn from a seed (benchmarks/cpu/decoders.py). Measured is the tenth percentile of the
steps' CPU time, as calibrations of a CPU are fitted: what else the machine does only ever adds. The
errors against medians are beside it. One thread, about four minutes. Ctrl-C shows what there is.
Checked by: tests/harness/test_cpu_time.py.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.cpu import report
from benchmarks.cpu.decoders import Drawn, draw
from benchmarks.cpu.timed import timed
from benchmarks.sweep.program import run_command
from memcalc import __version__
from memcalc.engine.device_side import device_of
from memcalc.engine.timing.answer import time_estimate
from memcalc.engine.timing.time_estimate import TimeEstimate
from memcalc.errors import ConfigError
from memcalc.harness.calibration import calibrate
from memcalc.harness.comparison import PHASE_SUMS, phase_seconds
from memcalc.harness.host import cpu_facts
from memcalc.inputs import calibrations
from memcalc.inputs.choose_rates import as_device

HERE = Path(__file__).parent
Tell = Callable[[str, int, int], None]
#: Row of the comparison -> its name in a record.
_PARTS = {"forward and loss": "forward", "backward": "backward", "optimizer": "optimizer"}


def predicted(one: Drawn, profile: dict[str, Any], path: Path) -> TimeEstimate:
    """The estimate's time of a decoder's step by a calibration of this CPU."""
    device = device_of(None)._replace(gpu=as_device(profile), calibration=str(path))
    return time_estimate(one.plan(), device)[0]


def compared(one: Drawn, told: TimeEstimate, seen: dict[str, Any]) -> dict[str, Any]:
    """One row: predicted beside measured, whole and by phase."""
    phases, parts = seen["phases"], phase_seconds(told.to_dict())
    errors = {
        _PARTS[name]: parts[name] / sum(phases[phase] for phase in names) - 1
        for name, names in PHASE_SUMS.items()
    }
    assert told.step_s is not None
    return {
        "decoder": one._asdict(), "label": one.label, "predicted_s": told.step_s,
        "measured_s": seen["p10_s"], "error": told.step_s / seen["p10_s"] - 1,
        "error_of_median": told.step_s / seen["median_s"] - 1, "part_errors": errors,
        "measured": seen,
    }  # fmt: skip


def calibrated(stated: Path | None, threads: int, out: Path, tell: Tell) -> dict[str, Any]:
    """The calibration stated, or one made now and written beside the results."""
    if stated is not None:
        profile = calibrations.read(stated)
        if profile["device"]["type"] != "cpu":
            raise ConfigError(
                f"--calibration: got one of {profile['device']['name']}; rule: a CPU's"
            )
        return profile
    found = calibrate.run(torch.device("cpu"), threads=threads, progress=tell)
    out.write_text(calibrations.to_text(found), "utf-8")
    return found


def record(rows: list[dict[str, Any]], profile: dict[str, Any], seed: int) -> dict[str, Any]:
    """One line of the record: when, on what, every step, and the scores."""
    return {
        "schema": 1,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "memcalc": __version__,
        "torch": torch.__version__,
        "device": cpu_facts(),
        "threads": torch.get_num_threads(),
        "seed": seed,
        "calibration": {name: profile[name] for name in ("name", "date", "summary")},
        "scores": report.by_group(rows) if rows else {},
        "rows": rows,
    }


@contextlib.contextmanager
def progress() -> Iterator[Tell]:
    """A bar on stderr with the time left; nothing where that is no terminal."""
    if not sys.stderr.isatty():
        yield lambda stage, done, total: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("")

        def tell(stage: str, done: int, total: int) -> None:
            bar.update(task, description=stage, completed=done, total=total)

        yield tell


def command(
    decoders: Annotated[int, typer.Option(help="How many", min=1, max=1000)] = 20,
    seed: Annotated[int, typer.Option(help="Of the draw")] = 11,
    calibration: Annotated[
        Path | None, typer.Option(help="A calibration of this CPU, instead of making one")
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads of the CPU", min=1)] = 1,
    least: Annotated[float, typer.Option(help="Seconds each decoder is timed", min=0.0)] = 2.0,
    out: Annotated[Path, typer.Option(help="Where a calibration made here goes")] = Path(
        "cpu_time_calibration.toml"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout")] = False,
    write: Annotated[bool, typer.Option(help="Append the record to cpu_time.jsonl")] = False,
) -> int:
    """Predict and measure steps of random decoders on this CPU."""
    torch.set_num_threads(threads)
    rows: list[dict[str, Any]] = []
    interrupted = False
    with progress() as tell:
        profile = calibrated(calibration, threads, out, tell)
        path = calibration or out
        drawn = draw(decoders, seed)
        try:
            for number, one in enumerate(drawn):
                tell(one.label, number, len(drawn))
                rows.append(compared(one, predicted(one, profile, path), timed(one, least)))
        except KeyboardInterrupt:
            interrupted = True
    found = record(rows, profile, seed)
    if write and rows and not interrupted:
        with (HERE / "cpu_time.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")
    _show(found, as_json)
    return 130 if interrupted else 0


def _show(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(found, indent=1))
        return
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 120, soft_wrap=False)
    for table in report.tables(found["rows"], found["scores"]):
        console.print(table)


def main(words: list[str]) -> int:
    """The program; the status it ends with."""
    return run_command(command, words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
