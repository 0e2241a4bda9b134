"""memcalc chart compare [MODEL]: models, GPUs and setups side by side: what fits, how fast, what cost.

Also makes the object of `memcalc compare`, so that table and picture hold the same numbers.
Checked by: cli/test_compare.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from memcalc.cli.charts.priced import telling
from memcalc.cli.options import BY_NAME
from memcalc.cli.pace import positive
from memcalc.cli.parse import Arguments
from memcalc.cli.request import typed
from memcalc.cli.variants import cases_of, differing
from memcalc.errors import ConfigError
from memcalc.planning.cases import Case, Point, Refused, point_of, points
from memcalc.planning.charts.compare import Wish, compare
from memcalc.planning.charts.head import head, models_on_gpus, setup_line
from memcalc.planning.compare_columns import COLUMNS, SPEED, column_of, columns_of
from memcalc.planning.rows import SIMULATED, row_of

#: As many cases are priced one by one, the allocator replayed for each; more go through the grid.
EXACT: Final = 100
#: Kinds of column a picture can show.
_DRAWN: Final = ("amount", "rate", "share", "seconds", "usd")
_PROBED_VALUES = 4
Row = dict[str, Any]


def found(arguments: Arguments) -> dict[str, Any]:
    """The chart's object: the comparison, and which quantities stand beside the memory."""
    word = arguments.text("value")
    value = SPEED if word is None else column_of("--value", word)
    if value.kind not in _DRAWN:
        raise ConfigError(f"--value: got {word}; rule: a quantity, as tokens-per-s or mfu")
    compared = comparison(arguments)
    beside = [value] if any(row[value.key] is not None for row in compared["rows"]) else []
    if compared["price_usd_per_gpu_hour"] is not None and value.name != "cost":
        beside.append(COLUMNS["cost"])
    drawn, count = compared["drawn"], compared["count"]
    cut = f"the first {drawn} drawn" if drawn < count else ""
    subtitle = "; ".join(filter(None, (compared["subtitle"], compared["says"], cut)))
    panels = [column._asdict() for column in beside]
    return {**compared, "subtitle": subtitle, "panels": panels}


def comparison(arguments: Arguments) -> dict[str, Any]:
    """The object of `compare`. Raises ConfigError for bad values and where every case is refused."""
    options = differing(arguments)
    wish = _wish(arguments, options)
    cases = cases_of(arguments)
    rows, examples, notes = _rows(arguments, cases, wish.price)
    if all(row["reason"] is not None for row in rows):
        raise ConfigError(rows[0]["reason"])
    title = f"{_title(rows)}: what fits and how fast"
    made = compare(head("compare", title, setup_line(examples), examples), options, rows, wish)
    return {**made, "notes": notes}


def _wish(arguments: Arguments, options: Sequence[str]) -> Wish:
    """--sort, --columns, --top and --price as stated. Raises ConfigError."""
    sort, columns, top = (arguments.text(name) for name in ("sort", "columns", "top"))
    price = positive(arguments, "price")
    by = None
    if sort is not None:
        name = sort.strip().removeprefix("-")
        by = (column_of("--sort", name, options), sort.strip().startswith("-"))
    return Wish(
        by,
        None if columns is None else columns_of("--columns", columns),
        None if top is None else typed(BY_NAME["top"], top),
        price,
    )


def _rows(
    arguments: Arguments, cases: Sequence[Case | Refused], price: float | None
) -> tuple[list[Row], list[Point], list[str]]:
    """A row of each case, points that stand for all of them, and what to say of the figures."""
    if len(cases) <= EXACT:
        with telling(arguments) as tell:
            priced = points(cases, tell)
        said = [note for point in priced if point.result for note in point.result.notes]
        return [row_of(point, price) for point in priced], priced, _few(said)
    from memcalc.planning.quick import quick_rows

    with telling(arguments) as tell:
        rows = quick_rows(cases, tell, price)
    examples = [point_of(case, allocator=False) for case in _examples(cases)]
    said = [row["note"] for row in rows if row["note"]]
    ratios = sorted({row["reserved"] for row in rows} - {SIMULATED, None})
    return rows, examples, _few([*said, *(f"reserved bytes: {ratio}" for ratio in ratios)])


def _examples(cases: Sequence[Case | Refused]) -> list[Case | Refused]:
    """Cases that stand for all: of each option that differs a few values, both ends among them."""
    found: dict[str, Case | Refused] = {cases[0].command: cases[0], cases[-1].command: cases[-1]}
    for name in cases[0].labels:
        firsts = {case.labels[name]: case for case in reversed(cases)}
        values = list(firsts)
        step = max(1, len(values) // _PROBED_VALUES)
        found |= {firsts[value].command: firsts[value] for value in values[::step]}
    return list(found.values())


def _few(notes: Sequence[str], most: int = 6) -> list[str]:
    distinct = list(dict.fromkeys(notes))
    more = len(distinct) - most
    rest = [f"{more} more notes: `memcalc estimate` shows those of each setup"] if more > 0 else []
    return [*distinct[:most], *rest]


def _title(rows: Sequence[Mapping[str, Any]]) -> str:
    """`llama-3.1-8b, qwen2.5-7b on h100-80gb, h200`; many are counted."""
    gpus = (_gpu(row) for row in rows if row["gpu"] and row["gpus"])
    return models_on_gpus((row["model"] for row in rows), gpus)


def _gpu(row: Mapping[str, Any]) -> str:
    return str(row["gpu"]) if row["gpus"] == 1 else f"{row['gpus']} x {row['gpu']}"
