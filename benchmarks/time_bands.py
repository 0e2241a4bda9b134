"""Bands printed with estimates, from the errors of published runs: writes profiles/bands/*.toml.

    python -m benchmarks.time_bands

throughput.toml: factors on a step's seconds, by class. memory.toml: factors on driver-used bytes, of all
sources alike. They are made of the errors in benchmarks/report/errors.jsonl, a line a run, which this writes
first. How they are made is in memcalc/accuracy/bands.py; how often they hold, in REPORT.md.
Checked by: published/test_bands.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from memcalc.accuracy.bands import (
    Band,
    Key,
    Run,
    classes,
    memory_runs,
    over_sources,
    time_runs,
)
from memcalc.accuracy.pricing import price
from memcalc.accuracy.rows import published_rows, read_rows

FOLDER = Path(__file__).parents[1] / "profiles" / "bands"
ERRORS = Path(__file__).parent / "report" / "errors.jsonl"
TIME, MEMORY = "step time", "driver-used memory"
Runs = dict[str, list[Run]]
TIME_HEAD = """\
# Bands of a step's time: factors on the predicted seconds between which nine of ten published runs of a
# class lie. The first class that fits is taken. Made by `python -m benchmarks.time_bands`.
"""
MEMORY_HEAD = """\
# Band of driver-used bytes: factors on the prediction between which nine of ten published runs lie, every
# source with the same weight. Made by `python -m benchmarks.time_bands`.
"""


def main() -> None:
    """Price the runs and write the files."""
    runs = priced()
    ERRORS.write_text("".join(lines(runs)), encoding="utf-8")
    for name, text in texts(recorded()).items():
        (FOLDER / name).write_text(text, encoding="utf-8")


def priced(every: int = 1) -> Runs:
    """Errors of the published runs today; every: of how many rows one."""
    table = read_rows(published_rows()).rows
    pairs = price(table[::every], table=table).pairs
    return {TIME: time_runs(pairs), MEMORY: memory_runs(pairs)}


def lines(runs: Runs) -> Iterable[str]:
    """A line a run; setups are numbered in the order in which they come."""
    for band, mine in runs.items():
        number = {name: place for place, name in enumerate(dict.fromkeys(r.setup for r in mine))}
        for run in mine:
            plain = run._replace(
                setup=str(number[run.setup]), factor=round(run.factor, 6),
                open=(round(run.open[0], 6), round(run.open[1], 6)),
            )  # fmt: skip
            yield json.dumps({"band": band, **plain._asdict()}) + "\n"


def recorded() -> Runs:
    """The runs of the file."""
    found: Runs = {TIME: [], MEMORY: []}
    for line in ERRORS.read_text("utf-8").splitlines():
        row = json.loads(line)
        row["open"] = tuple(row["open"])
        found[row.pop("band")].append(Run(**row))
    return found


def texts(errors: Runs) -> dict[str, str]:
    """What the files of bands hold, by name."""
    made = classes(errors[TIME])
    ordered = sorted(made.items(), key=lambda item: (item[0] == ("", ""), not item[0][0], item[0]))
    tables = [_table(key, band) for key, band in ordered]
    runs = errors[MEMORY]
    band = over_sources(runs)
    sources = len({run.source for run in runs})
    memory = (
        f"low = {band.low:.3f}\nhigh = {band.high:.3f}\n"
        f'reason = "nine of ten of {band.setups} published runs of {sources} sources"\n'
    )
    return {
        "throughput.toml": "\n".join([TIME_HEAD, *tables]),
        "memory.toml": f"{MEMORY_HEAD}\n{memory}",
    }


def _reason(key: Key, band: Band) -> str:
    if key == ("", ""):
        return "no published run on this architecture, or too few: lowest to highest of all classes"
    of = f" of stack {key[0]}" if key[0] else ""
    aside = ", most of which a residual was fitted to" if band.fitted else ""
    return f"nine of ten of {band.setups} published setups{of} on {key[1]}{aside}"


def _table(key: Key, band: Band) -> str:
    lines = ["[[band]]"]
    lines += [f'stacks = ["{key[0]}"]'] if key[0] else []
    lines += [f'architectures = ["{key[1]}"]'] if key[1] else []
    lines += [
        f"low = {band.low:.3f}",
        f"high = {band.high:.3f}",
        f'reason = "{_reason(key, band)}"',
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
