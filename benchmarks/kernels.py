"""How far memcalc's kernel times are from measured ones: any table of the four forms, priced.

    python -m benchmarks.kernels --gemm FILE --attention FILE --decode FILE --collectives FILE
        [--calibration default] [--held-out] [--json]

Each file has the columns of benchmarks/kernel_fit/tables.py; any of them may be left out. Every row is
priced with the calibration of its system's GPU (the shipped default unless another is named) and set
against `latency_ms_median`. Attention has a line more for the rows that can be what their columns say
(`is_sound` there). --held-out counts only the shapes that the shipped fits never saw. Bad input: one
line, exit 2. Checked by: unit/test_kernels_benchmark.py.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.kernel_fit.predict import scored
from benchmarks.kernel_fit.report import error_page
from benchmarks.kernel_fit.tables import FORMS, Table, read_all
from memcalc.errors import ConfigError
from memcalc.inputs.choose_rates import choose_rates
from memcalc.output.console import render

File = Annotated[Path | None, typer.Option(help="CSV; columns: benchmarks/kernel_fit/tables.py")]


def priced(table: Table, calibration: str, held_out: bool) -> list[dict[str, Any]]:
    """Figures of a table by class of sizes; of attention for all rows, then for the sound ones."""
    rates = choose_rates(table.gpu, calibration)[0]
    chosen = table.is_held_out() if held_out else table.seconds > 0
    sound = table.is_sound()
    rows = [{**row, "calibration": rates.name} for row in scored(table, rates, chosen)]
    if sound.all():
        return rows
    for row in scored(table, rates, chosen & sound):
        rows.append({**row, "sizes": f"{row['sizes']}, sound", "calibration": rates.name})
    return rows


def main(
    gemm: File = None,
    attention: File = None,
    decode: File = None,
    collectives: File = None,
    calibration: Annotated[str, typer.Option(help="Name or file")] = "default",
    held_out: Annotated[bool, typer.Option("--held-out", help="Only shapes never fitted")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Plain numbers")] = False,
) -> None:
    """Price the tables and say the errors."""
    files = dict(zip(FORMS, (gemm, attention, decode, collectives), strict=True))
    try:
        tables = read_all(files)
        rows = [row for table in tables for row in priced(table, calibration, held_out)]
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    if as_json:
        print(json.dumps({"schema": 1, "rows": rows}, indent=2))
        return
    print(render(lambda page: error_page(page, rows)))


if __name__ == "__main__":
    typer.run(main)
