"""Bands of a step's time from the published runs: writes profiles/bands/throughput.toml.

    python -m benchmarks.time_bands

A class is a stack on an architecture, or an architecture; the factor on a predicted step is
1 + error of the run, its band the tenth and the ninetieth percentile over the setups of the class. Runs that
differ in the number of micro-batches alone are one setup. A class needs SETUPS of them. A source that a
constant was fitted to counts only where nothing else is known. Runs that their own table contradicts and
cards sold otherwise (a capped power) do not count.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from pathlib import Path

from memcalc.accuracy.groups import is_fitted
from memcalc.accuracy.pricing import THROUGHPUT, Pair, price
from memcalc.accuracy.rows import published_rows, read_rows
from memcalc.accuracy.scores import setup_key
from memcalc.accuracy.setups import SAME_CHIP
from memcalc.inputs.hardware import load_gpu

#: Fewer setups give no percentiles.
SETUPS = 5
FILE = Path(__file__).parents[1] / "profiles" / "bands" / "throughput.toml"
HEAD = """\
# Bands of a step's time: factors on the predicted seconds between which eight of ten published runs of a
# class lie. The first class that fits is taken. Made by `python -m benchmarks.time_bands`.
"""


def main() -> None:
    """Price the runs and write the file."""
    rows = [row for row in read_rows(published_rows()).rows if row.text("confidence") != "low"]
    pairs = [
        pair
        for pair in price(rows, what=(THROUGHPUT,)).pairs
        if pair.gpu and pair.scored and pair.row.text("gpu") not in SAME_CHIP
    ]
    classes: dict[tuple[str, str], list[Pair]] = {}
    for pair in pairs:
        architecture = load_gpu(pair.gpu or "")[0].architecture
        for key in ((_stack(pair), architecture), ("", architecture)):
            classes.setdefault(key, []).append(pair)
    tables, ends = [HEAD], []
    for key in sorted(classes, key=lambda key: (not key[0], key)):
        factors = _factors(classes[key])
        if len(factors) >= SETUPS:
            low, high = _band(factors)
            ends += [low, high]
            fresh = sum(not is_fitted(pair.row) for pair in classes[key])
            tables.append(_table(key, low, high, _reason(key, len(factors), fresh < SETUPS)))
    said = "no published run on this architecture: from the lowest to the highest of all classes"
    tables.append(_table(("", ""), min(ends), max(ends), said))
    FILE.write_text("\n".join(tables), encoding="utf-8")


def _stack(pair: Pair) -> str:
    return (pair.row.text("stack") or "torch").removeprefix("other:")


def _factors(pairs: Iterable[Pair]) -> list[float]:
    """Measured over predicted seconds, one a setup; of fitted sources only where there are no others."""
    pairs = list(pairs)
    chosen = [pair for pair in pairs if not is_fitted(pair.row)]
    chosen = chosen if len(chosen) >= SETUPS else pairs
    setups: dict[str, list[float]] = {}
    for pair in chosen:
        setups.setdefault(setup_key(pair.row), []).append(1 + pair.error)
    return [statistics.median(found) for found in setups.values()]


def _band(factors: list[float]) -> tuple[float, float]:
    """The tenth and the ninetieth percentile, the prediction between them."""
    tenths = statistics.quantiles(factors, n=10, method="inclusive")
    return min(1.0, tenths[0]), max(1.0, tenths[-1])


def _reason(key: tuple[str, str], setups: int, fitted: bool) -> str:
    of = f" of stack {key[0]}" if key[0] else ""
    aside = ", most of which a residual was fitted to" if fitted else ""
    return f"eight of ten of {setups} published setups{of} on {key[1]}{aside}"


def _table(key: tuple[str, str], low: float, high: float, reason: str) -> str:
    lines = ["[[band]]"]
    lines += [f'stacks = ["{key[0]}"]'] if key[0] else []
    lines += [f'architectures = ["{key[1]}"]'] if key[1] else []
    lines += [f"low = {low:.3f}", f"high = {high:.3f}", f'reason = "{reason}"']
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
