"""Published serving runs, predicted beside measured, and the bands of a token's time that follow.

    python -m benchmarks.serving_rows

Prints each figure, the mean and the bias of each source, and the lowest and highest of measured over
predicted time, of each engine and of all: those of all are in profiles/engines, since a band of nine in ten
needs 19 rows (memcalc/accuracy/bands.py) and neither engine has them.
"""

from __future__ import annotations

from statistics import mean

from memcalc.accuracy.pricing import Pair
from memcalc.accuracy.rows import published_rows, read_rows
from memcalc.accuracy.serving import ENGINES, price_serving


def main() -> None:
    """Print the tables."""
    priced = price_serving(read_rows(published_rows()).rows)
    groups: dict[tuple[str, str], list[Pair]] = {}
    for pair in priced.pairs:
        row = pair.row
        groups.setdefault((row.source, pair.what), []).append(pair)
        print(
            f"{row.source}, {row.text('model')} {row.text('precision_text')}, context "
            f"{row.whole('context')}, {pair.what}: {100 * pair.error:+.1f} %"
            + ("" if pair.scored else " (shown only)")
        )
    for (source, what), pairs in groups.items():
        errors = [100 * pair.error for pair in pairs]
        print(
            f"{source}, {what}: n {len(errors)}, mean {mean(map(abs, errors)):.1f} %, bias "
            f"{mean(errors):+.1f} %, worst {max(errors, key=abs):+.1f} %"
        )
    _bands(priced.pairs)
    for left in priced.unexpressed:
        print(f"not priced: {left.row.source}, {left.row.text('model')}: {left.reason}")


def _bands(pairs: list[Pair]) -> None:
    of: dict[str, list[float]] = {"all": []}
    for pair in pairs:
        if pair.what == "throughput" and pair.scored:
            for name in (ENGINES[pair.row.text("stack") or ""], "all"):
                of.setdefault(name, []).append(1 + pair.error)
    for name, ratios in of.items():
        print(f"{name}: n {len(ratios)}, measured time over predicted {min(ratios):.3f} to "
              f"{max(ratios):.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
