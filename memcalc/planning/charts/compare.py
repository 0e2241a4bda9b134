"""The comparison's object: rows in order, the best of them, what does not fit, what was refused.

`memcalc compare` and `memcalc chart compare` are written from this object alone. Rows are those of
`planning/rows.py`. In order: what fits, fastest a GPU first; what does not, least short first; what was
refused, as given. Without a GPU there is no verdict, and the least memory comes first.
Checked by: cli/test_compare.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from memcalc.planning.charts.head import label_text
from memcalc.planning.compare_columns import (
    COLUMNS,
    SPEED,
    Column,
    default_columns,
    label_columns,
)
from memcalc.units import gib

Row = dict[str, Any]
_INFINITE = float("inf")
#: Rows of a picture; more are not readable on a page or a slide.
DRAWN = 40


class Wish(NamedTuple):
    """What was asked of a comparison. sort: a column and whether it is turned round; None: see above.

    columns: those to show, None: the usual ones. top: how many rows are kept. price: USD per GPU-hour.
    """

    sort: tuple[Column, bool] | None = None
    columns: Sequence[Column] | None = None
    top: int | None = None
    price: float | None = None


def compare(
    head: Mapping[str, Any],
    options: Sequence[str],
    rows: Sequence[Row],
    wish: Wish = Wish(),  # noqa: B008  # immutable
) -> dict[str, Any]:
    """The JSON object of a comparison.

    head: `planning/charts/head.py: head`. options: names of the options that differ, in order. Counts
    and the best are of all rows, also where wish.top leaves some out. Bytes, seconds, shares.
    """
    rows = [_named(row) for row in rows]
    priced = [row for row in rows if row["reason"] is None]
    judged = any(row["fits"] is not None for row in priced)
    fitting = [row for row in priced if row["fits"]] if judged else priced
    by = wish.sort[0] if wish.sort and wish.sort[0].better != "none" else SPEED
    found = ordered(rows, wish.sort)
    shown = found if wish.top is None else found[: wish.top]
    columns = default_columns(priced, wish.price) if wish.columns is None else list(wish.columns)
    best = _best(fitting, by) if judged else None
    return {
        **head,
        "options": list(options),
        "columns": [column._asdict() for column in (*label_columns(options), *columns)],
        "sorted_by": None if wish.sort is None else "-" * wish.sort[1] + wish.sort[0].name,
        "count": len(rows),
        "fits_count": len(fitting) if judged else None,
        "refused_count": len(rows) - len(priced),
        "left_out": len(found) - len(shown),
        "drawn": min(len(shown), DRAWN),
        "price_usd_per_gpu_hour": wish.price,
        "best": best,
        "best_by": None if best is None else by.name,
        "best_values": best_values(fitting, columns) if len(rows) > 1 else {},
        "bands": bands(priced),
        "says": _says(rows, priced, fitting if judged else None, best, by),
        "rows": shown,
    }


def _named(row: Row) -> Row:
    """A refused row has no model or GPU of its own: those stated for it, as far as they differ."""
    labels = row["labels"]
    return {**row, **{k: labels[k] for k in ("model", "gpu") if row[k] is None and k in labels}}


def ordered(rows: Sequence[Row], sort: tuple[Column, bool] | None = None) -> list[Row]:
    """The rows in order, refused ones last; of a column's equals the first given comes first.

    A column is sorted best first, labels and words in the order given; unknown amounts come last.
    """
    refused = [row for row in rows if row["reason"] is not None]
    priced = [row for row in rows if row["reason"] is None]
    if sort is None:
        return [*sorted(priced, key=_usual), *refused]
    column, turned = sort
    if column.kind in ("label", "word", "fits"):
        place = _places(priced, column)
        found = sorted(priced, key=lambda row: place[_value(row, column)])
        return [*(reversed(found) if turned else found), *refused]
    known = [row for row in priced if row[column.key] is not None]
    down = (column.better == "high") != turned
    known.sort(key=lambda row: -row[column.key] if down else row[column.key])
    return [*known, *(row for row in priced if row[column.key] is None), *refused]


def _usual(row: Row) -> tuple[int, float, float]:
    speed, need = row[SPEED.key], float(need_of(row))
    if row["fits"] is False:
        return 1, float(-(row["headroom_bytes"] or 0)), -(speed or 0.0)
    return 0, _INFINITE if speed is None else -speed, need


def _places(rows: Sequence[Row], column: Column) -> dict[Any, int]:
    if column.kind == "fits":
        return {word: at for at, word in enumerate(("fits", "tight", None, "does-not-fit"))}
    values = dict.fromkeys(_value(row, column) for row in rows)
    return {value: at for at, value in enumerate(values)}


def _value(row: Row, column: Column) -> Any:
    return row["labels"].get(column.key) if column.kind == "label" else row[column.key]


def need_of(row: Mapping[str, Any]) -> int:
    """Bytes a row needs: what the driver reports, else what PyTorch allocates."""
    return int(row["device_used_bytes"] or row["peak_allocated_bytes"] or 0)


def short_of(row: Mapping[str, Any]) -> int | None:
    """Bytes a row lacks; None where it fits, or where something else than the GPU is too small."""
    headroom = row["headroom_bytes"]
    return -headroom if row["fits"] is False and headroom is not None and headroom < 0 else None


def _best(rows: Sequence[Row], by: Column) -> Row | None:
    """The row with the best of a column; of equals the one that needs least memory."""
    known = [row for row in rows if row[by.key] is not None]
    sign = -1 if by.better == "high" else 1
    return min(known, key=lambda row: (sign * row[by.key], need_of(row)), default=None)


def best_values(rows: Sequence[Row], columns: Sequence[Column]) -> dict[str, Any]:
    """Key -> its best value among these rows, of columns where one row is better than another."""
    found = {}
    for column in columns:
        values = [row[column.key] for row in rows if row.get(column.key) is not None]
        if column.better != "none" and values and (len(rows) == 1 or min(values) != max(values)):
            found[column.key] = max(values) if column.better == "high" else min(values)
    return found


def bands(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Of each calibration: how far the band of a step time reaches below and above it, and its basis.

    [{"calibration", "basis", "low_share", "high_share"}], the widest where rows of one differ.
    """
    found: dict[tuple[Any, Any], list[Row]] = {}
    for row in rows:
        if row["step_s"]:
            found.setdefault((row["calibration"], row.get("band")), []).append(row)
    return [
        {
            "calibration": calibration,
            "basis": basis,
            "low_share": _reach(group, "low_s", min),
            "high_share": _reach(group, "high_s", max),
        }
        for (calibration, basis), group in found.items()
    ]


def _reach(rows: Sequence[Row], key: str, widest: Callable[[list[float]], float]) -> float | None:
    shares: list[float] = [row[key] / row["step_s"] - 1 for row in rows if row[key] is not None]
    return widest(shares) if shares else None


def _says(
    rows: Sequence[Row], priced: Sequence[Row], fitting: Sequence[Row] | None, best: Row | None,
    by: Column,
) -> str:  # fmt: skip
    """The finding, in one line."""
    refused = f", {len(rows) - len(priced):,} refused" if len(priced) < len(rows) else ""
    if not priced:
        return f"all {len(rows):,} setups are refused: {rows[0]['reason']}"
    if fitting is None:
        return f"no GPU named: memory only, no verdict{refused}"
    if not fitting:
        return _nothing(priced) + refused
    count = f"{len(fitting):,} of {len(rows):,} fit{refused}"
    if best is None or len(rows) == 1:
        return count
    place = label_text(best["labels"])
    tight = ", tight" if best["verdict"] == "tight" else ""
    return f"best: {place}, {_amount(best, by)}, {gib(need_of(best))}{tight}; {count}"


def _nothing(priced: Sequence[Row]) -> str:
    known = [row for row in priced if short_of(row) is not None]
    if not known:
        return "nothing fits"
    row = min(known, key=lambda row: short_of(row) or 0)
    where = f" ({place})" if (place := label_text(row["labels"])) else ""
    return (
        f"nothing fits: the closest is {gib(short_of(row) or 0)} short, needs {gib(need_of(row))} of "
        f"{gib(row['usable_bytes'])}{where}"
    )


def _amount(row: Row, by: Column) -> str:
    value = row[by.key] * by.scale
    if by.kind == "share":
        return f"{' '.join(by.heading)} {value:.1f}%"
    if by.kind == "amount":
        return f"{by.heading[0]} {value:,.2f} GiB"
    figures = f"{value:,.0f}" if value >= 100 else f"{value:,.4g}"
    return f"{figures} {' '.join(by.heading)}"


def known_names() -> list[str]:
    """Names that --sort and --columns take beside the options that differ."""
    return list(COLUMNS)
