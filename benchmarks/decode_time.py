"""How well the time of generating is predicted on a CPU: random small decoders, none used for fitting.

    python -m benchmarks.decode_time                     calibrate here, then 20 generations, a table
    python -m benchmarks.decode_time --calibration FILE  with a calibration of this CPU made before
    python -m benchmarks.decode_time --json --write      one JSON object; and append to decode_time.jsonl

Generations are drawn from a seed (benchmarks/cpu/generations.py). Rounds go over all of them in turn, so
that what else the machine does falls on each alike. Measured is the tenth percentile of each pass over
all rounds, in the process's own CPU time, as calibrations of a CPU are fitted: what else the machine does
only ever adds. The errors against medians are beside it. Generating waits for memory, which other processes
use too: a product that reads a large matrix is timed after the calibration and in every round, and how
much slower it became is told. One thread, about four minutes. Ctrl-C shows what there is.
Checked by: tests/harness/test_decode_time.py.
"""

from __future__ import annotations

import json
import statistics
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.cpu import report
from benchmarks.cpu.generations import Asked, draw
from benchmarks.cpu_time import calibrated, progress
from benchmarks.sweep.program import run_command
from memcalc import __version__
from memcalc.engine.device_side import device_of
from memcalc.engine.serving.generation import GenerationTime, generation_time
from memcalc.engine.timing.topology import wires_of
from memcalc.harness.calibration.timing import cpu_clock, quantile
from memcalc.harness.decode import Decoding
from memcalc.harness.host import cpu_facts
from memcalc.harness.malloc import kept
from memcalc.harness.step_clock import frozen_garbage
from memcalc.inputs.choose_rates import as_device, choose_rates
from memcalc.inputs.parallel import ParallelPlan

HERE = Path(__file__).parent


def predicted(one: Asked, profile: dict[str, Any], path: Path) -> GenerationTime:
    """Time of the prompts' pass and of a step in the middle by a calibration of this CPU."""
    device = device_of(None)._replace(gpu=as_device(profile))
    assert device.gpu is not None
    rates, _ = choose_rates(device.gpu, str(path))
    return generation_time(one.generation(), rates, wires_of(device, ParallelPlan(), rates))


def probe_s() -> float:
    """Seconds of a vector times a matrix of 64 MiB: the tenth percentile of twenty."""
    now, vector, matrix = cpu_clock(), torch.ones(4096), torch.ones(4096, 4096)
    taken = []
    for _ in range(20):
        begin = now()
        torch.mv(matrix, vector)
        taken.append(now() - begin)
    return quantile(sorted(taken), 0.1)


def one_round(one: Asked) -> tuple[float, list[float]]:
    """Seconds of the prompts' pass and of every step; the decoder is made anew and warmed up."""
    now = cpu_clock()
    decoding = Decoding(one.generation(), "cpu")
    decoding.run()
    marks: list[float] = []
    with frozen_garbage():
        decoding.run(lambda name: marks.append(now()))
        marks.append(now())
    seconds = [end - begin for begin, end in zip(marks, marks[1:], strict=False)]
    return seconds[0], seconds[1:]


def compared(
    one: Asked, told: GenerationTime, rounds: list[tuple[float, list[float]]]
) -> dict[str, Any]:
    """One row: predicted beside measured, prompts and tokens."""
    first = sorted(one for one, _ in rounds)
    later = sorted(seconds for _, steps in rounds for seconds in steps)
    prefill, token = quantile(first, 0.1), quantile(later, 0.1)
    return {
        "generation": {**one._asdict(), "decoder": one.decoder._asdict()}, "label": one.label,
        "predicted_s": told.step.seconds, "measured_s": token,
        "error": told.step.seconds / token - 1,
        "error_of_median": told.step.seconds / quantile(later, 0.5) - 1,
        "predicted_prefill_s": told.prefill.seconds, "measured_prefill_s": prefill,
        "prefill_error": told.prefill.seconds / prefill - 1,
        "prefill_error_of_median": told.prefill.seconds / quantile(first, 0.5) - 1,
        "bound": told.step.bound, "rounds": rounds,
    }  # fmt: skip


def scores(rows: list[dict[str, Any]]) -> dict[str, dict[str, float | int]]:
    """Scores of tokens and prompts, and of tokens by precision and kind of cache."""
    found = {
        "a token": report.scores(rows), "a token, of medians": report.scores(rows, "error_of_median"),
        "prompts": report.scores(rows, "prefill_error"),
        "prompts, of medians": report.scores(rows, "prefill_error_of_median"),
    }  # fmt: skip
    for key in ("precision", "code"):
        for value in sorted({row["generation"][key] for row in rows}):
            mine = [row for row in rows if row["generation"][key] == value]
            found[f"a token, {value}"] = report.scores(mine)
    return found


def tables(rows: list[dict[str, Any]], found: dict[str, Any]) -> list[Any]:
    """Rich tables: the generations, then the scores."""
    from rich.table import Table

    each = Table(title="Seconds on this CPU; error: predicted / measured - 1")
    for column in (
        "generation",
        "token ms",
        "measured",
        "error",
        "prompts ms",
        "measured",
        "error",
    ):
        each.add_column(column, justify="left" if column == "generation" else "right")
    for row in rows:
        each.add_row(
            row["label"], f"{row['predicted_s'] * 1e3:,.2f}", f"{row['measured_s'] * 1e3:,.2f}",
            f"{row['error']:+.0%}", f"{row['predicted_prefill_s'] * 1e3:,.1f}",
            f"{row['measured_prefill_s'] * 1e3:,.1f}", f"{row['prefill_error']:+.0%}",
        )  # fmt: skip
    return [each, report.scores_table(found, "Scores; the aim is a median of at most 20 %")]


def command(
    decoders: Annotated[int, typer.Option(help="How many generations", min=1, max=1000)] = 20,
    seed: Annotated[int, typer.Option(help="Of the draw")] = 11,
    calibration: Annotated[
        Path | None, typer.Option(help="A calibration of this CPU, instead of making one")
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads of the CPU", min=1)] = 1,
    rounds: Annotated[int, typer.Option(help="How often each is timed", min=1)] = 5,
    steps: Annotated[int, typer.Option(help="Tokens generated each time", min=1)] = 16,
    out: Annotated[Path, typer.Option(help="Where a calibration made here goes")] = Path(
        "cpu_time_calibration.toml"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout")] = False,
    write: Annotated[bool, typer.Option(help="Append the record to decode_time.jsonl")] = False,
) -> int:
    """Predict and measure generations of random decoders on this CPU."""
    torch.set_num_threads(threads)
    drawn = draw(decoders, seed, steps)
    taken: list[list[tuple[float, list[float]]]] = [[] for _ in drawn]
    probes: list[float] = []
    interrupted = False
    with progress() as tell:
        profile = calibrated(calibration, threads, out, tell)
        try:
            probes.append(probe_s())
            for number in range(rounds * len(drawn)):
                one = drawn[number % len(drawn)]
                tell(one.label, number, rounds * len(drawn))
                if number % len(drawn) == 0:
                    probes.append(probe_s())
                with kept():
                    taken[number % len(drawn)].append(one_round(one))
        except KeyboardInterrupt:
            interrupted = True
    path = calibration or out
    rows = [
        compared(one, predicted(one, profile, path), found)
        for one, found in zip(drawn, taken, strict=True)
        if found
    ]
    found = {**record(rows, profile, seed), "probes_s": probes}
    if write and rows and not interrupted:
        with (HERE / "decode_time.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")
    _show(found, as_json)
    return 130 if interrupted else 0


def record(rows: list[dict[str, Any]], profile: dict[str, Any], seed: int) -> dict[str, Any]:
    """One line of the record: when, on what, every pass, and the scores."""
    return {
        "schema": 1,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "memcalc": __version__,
        "torch": torch.__version__,
        "device": cpu_facts(),
        "threads": torch.get_num_threads(),
        "seed": seed,
        "calibration": {name: profile[name] for name in ("name", "date", "summary")},
        "scores": scores(rows) if rows else {},
        "rows": rows,
    }


def _show(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(found, indent=1))
        return
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 140, soft_wrap=False)
    for table in tables(found["rows"], found["scores"]):
        console.print(table)
    first, *later = found["probes_s"]
    if later:
        slower = statistics.median(later) / first
        console.print(
            f"a matrix was read in {1e3 * first:.2f} ms after the calibration, in {slower:.2f} times that "
            "during the rounds",
            highlight=False,
        )


def main(words: list[str]) -> int:
    """The program; the status it ends with."""
    return run_command(command, words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
