"""Sum residuals: what whole steps took over what their kernels take one by one, by source of runs.

    python -m benchmarks.residual_fit "SimuMax" "nanotron Ultra-Scale Playbook"

Isolated kernels run at clocks that a step under its power limit does not hold, and without the gaps
between them. For each priced run of a source the residual is the factor on its kernels' seconds that makes
its step as long as measured, all else equal; a class of devices takes the median over one whole source,
which accuracy figures then leave out (accuracy/groups.py). Prints n, median, and the tenth and ninetieth
percentile; writes nothing.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence

from memcalc.accuracy.pricing import THROUGHPUT, Pair, price
from memcalc.accuracy.rows import published_rows, read_rows
from memcalc.accuracy.scores import setup_key
from memcalc.inputs.hardware import load_gpu
from memcalc.inputs.rates import rates_of


def residual(pair: Pair) -> float:
    """The factor on a run's kernels that gives the measured step; residuals in use are undone."""
    parts = pair.parts
    measured_s = parts["step_s"] * (1 + pair.error)
    others_s = parts["step_s"] - parts["compute_s"]
    assert pair.gpu is not None
    in_use = rates_of(load_gpu(pair.gpu)[0]).sum_residual
    return (measured_s - others_s) / parts["compute_s"] * in_use


def residuals(source: str) -> list[float]:
    """The residuals of a source's runs whose columns hold all that decides them, one a setup.

    Runs that differ in the number of micro-batches alone are one measurement: their median counts.
    """
    rows = [
        row
        for row in read_rows(published_rows()).rows
        if source in row.source and row.text("priceable") == "yes"
    ]
    setups: dict[str, list[float]] = {}
    for pair in price(rows, what=(THROUGHPUT,)).pairs:
        if pair.parts and pair.scored:
            setups.setdefault(setup_key(pair.row), []).append(residual(pair))
    return [statistics.median(found) for found in setups.values()]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line a source."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", nargs="+", help="part of a source's name")
    for source in parser.parse_args(arguments).sources:
        found = sorted(residuals(source))
        if len(found) < 2:
            print(f"{source}: {len(found)} setups, too few")
            continue
        tenths = statistics.quantiles(found, n=10)
        print(
            f"{source}: setups {len(found)}, median {statistics.median(found):.3f}, "
            f"p10 {tenths[0]:.3f}, p90 {tenths[-1]:.3f}"
        )


if __name__ == "__main__":
    main()
