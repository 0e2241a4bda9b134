"""Published serving runs, predicted beside measured, and the bands of a token's time that follow.

    python -m benchmarks.serving_rows

Prints each figure, the mean and the bias of each source, and for each engine the tenth and ninetieth
percentile of measured over predicted time, which profiles/engines have.
"""

from __future__ import annotations

from statistics import mean, quantiles

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
    for engine in dict.fromkeys(ENGINES.values()):
        ratios = [
            1 + pair.error
            for pair in pairs
            if pair.what == "throughput"
            and pair.scored
            and ENGINES[pair.row.text("stack") or ""] == engine
        ]
        tenths = quantiles(ratios, n=10)
        print(f"{engine}: n {len(ratios)}, measured time over predicted {tenths[0]:.2f} to "
              f"{tenths[-1]:.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
