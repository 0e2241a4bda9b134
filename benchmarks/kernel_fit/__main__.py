"""Fit the default calibrations to tables of measured kernels, and say how good they are.

    python -m benchmarks.kernel_fit --gemm FILE --attention FILE --decode FILE --collectives FILE
        [--folder profiles/calibrations] [--write] [--json]

Each file has the columns of benchmarks/kernel_fit/tables.py; any of them may be left out. The half of
all shapes that a hash holds out is never fitted on; errors are of that half. --write replaces the
constants in the folder's files, else they are printed as TOML. Bad input: one line, exit 2.
Checked by: unit/test_kernels_benchmark.py.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.kernel_fit.calibrations import class_of, load, refitted, write
from benchmarks.kernel_fit.report import error_page
from benchmarks.kernel_fit.tables import FORMS, Table, read_all
from memcalc.errors import ConfigError
from memcalc.inputs.profiles import profiles_dir
from memcalc.inputs.toml_text import to_toml
from memcalc.output.console import render

File = Annotated[Path | None, typer.Option(help="CSV; columns: benchmarks/kernel_fit/tables.py")]


def main(
    gemm: File = None,
    attention: File = None,
    decode: File = None,
    collectives: File = None,
    folder: Annotated[Path | None, typer.Option(help="Calibrations to start from")] = None,
    write_files: Annotated[bool, typer.Option("--write", help="Replace the files there")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Errors as JSON")] = False,
) -> None:
    """Fit every class of devices that the tables have systems of."""
    files = dict(zip(FORMS, (gemm, attention, decode, collectives), strict=True))
    try:
        tables = read_all(files)
        home = folder or profiles_dir() / "calibrations"
        by_class: dict[str, list[Table]] = {}
        for table in tables:
            by_class.setdefault(class_of(table), []).append(table)
        fitted = {name: refitted(load(home, name), group) for name, group in by_class.items()}
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    if write_files:
        for name, raw in fitted.items():
            write(home / f"default-{name}.toml", raw)
    if as_json:
        print(json.dumps({name: raw["errors"] for name, raw in fitted.items()}, indent=2))
        return
    if not write_files:
        for raw in fitted.values():
            print(to_toml({key: value for key, value in raw.items() if key != "errors"}))
    rows = [row for raw in fitted.values() for row in raw["errors"]]
    print(render(lambda page: error_page(page, rows, "plain_mean_abs")))


if __name__ == "__main__":
    typer.run(main)
