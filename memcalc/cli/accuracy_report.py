"""memcalc accuracy --report: REPORT.md and its pictures, written whole; the same bytes every time.

Exit status 0, or 2 where the records are not there. `--short` prices a few of the rows.
Checked by: cli/test_report_accuracy.py.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memcalc.cli.parse import Arguments
from memcalc.errors import ConfigError

if TYPE_CHECKING:
    from memcalc.accuracy.pricing import Priced
    from memcalc.accuracy.proof.items import Class

#: Options that make no sense beside --report: it is of all rows.
_FOREIGN = ("rows", "source", "confidence", "priceable", "memory", "throughput", "csv")
NAME, PICTURES = "REPORT.md", "report"
#: Of our own GPU: a record's kind of memory figure -> its class; rates are step times.
_KINDS = {"allocated": "allocated", "reserved": "reserved", "nvidia-smi": "driver-used"}


def run(arguments: Arguments) -> int:
    """Price, score, draw and write; always 0."""
    from memcalc.accuracy.proof.build import proof
    from memcalc.accuracy.proof.records import folder
    from memcalc.output.accuracy_report import report_text
    from memcalc.output.files import put_stdout, to_json, write_text
    from memcalc.output.progress import progress

    given = [name for name in _FOREIGN if name in arguments.options]
    if given:
        raise ConfigError(f"--{given[0]}: got --report too; rule: the report is of every row")
    try:
        benchmarks = folder()
    except ConfigError as error:  # an installed memcalc has the published rows, not the records
        raise ConfigError(f"{error}; nearest valid: memcalc accuracy, of published rows") from None
    place = _place(arguments.text("out"), benchmarks)
    with progress("report", arguments.has("quiet")) as tell:
        priced = _priced(arguments.has("short"), tell)
        found = proof(priced, _measured(benchmarks / "measured"), arguments.has("short"))
    pictures = _draw(found, priced, place / PICTURES)
    write_text(str(place / NAME), report_text(found, pictures))
    if arguments.wants_json:
        put_stdout(to_json({key: value for key, value in found.items() if key != "points"}))
    else:
        put_stdout(f"{place / NAME}: {len(found['classes'])} classes, {len(pictures)} pictures\n")
    return 0


def _place(out: str | None, benchmarks: Path) -> Path:
    """The folder to write to, made where it is not there. Raises ConfigError."""
    place = benchmarks if out is None else Path(os.path.expanduser(out))
    try:
        (place / PICTURES).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--out: got {str(out)!r}; rule: a folder ({error})") from None
    return place


def _priced(short: bool, tell: Any) -> Priced:
    """Every published row, or those of the short form, with a bar that counts them."""
    from memcalc.accuracy.pricing import joined, price
    from memcalc.accuracy.proof.build import shortened
    from memcalc.accuracy.rows import published_rows, read_rows
    from memcalc.accuracy.serving import is_serving, price_serving

    every = read_rows(published_rows()).rows
    rows = shortened(every) if short else every
    trains = [row for row in rows if not is_serving(row)]
    serves = [row for row in rows if is_serving(row)]
    return joined(price(trains, tell, table=every), price_serving(serves))


def _measured(folder: Path) -> list[Class]:
    """Runs on a GPU of our own with today's predictions, by quantity; none where there are no records."""
    from memcalc.accuracy.proof.build import GPU_GROUP
    from memcalc.accuracy.proof.items import Class, Item
    from memcalc.cli.charts.accuracy_records import priced_records, textbooks

    of: dict[str, list[Item]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        written = textbooks(str(path))
        for pair in priced_records(str(path), ("memory", "throughput")).pairs:
            name = _KINDS.get(pair.kind, "step time" if pair.what == "throughput" else "")
            if name:
                one = written.get(pair.row.id, {}).get(name)
                error = None if one is None else 100 * (one / pair.measured - 1)
                said = f"{pair.row.text('model')} {pair.row.whole('seq')}x{pair.row.whole('micro_batch')}"
                device = pair.row.text("gpu") or "not stated"
                of.setdefault(name, []).append(
                    Item(pair.row.id, said, path.name, 100 * pair.error, error,
                         measured=pair.measured, part=device)
                )  # fmt: skip
    return [Class(GPU_GROUP, name, "this project's runs", items) for name, items in of.items()]


def _draw(found: dict[str, Any], priced: Priced, folder: Path) -> dict[str, str]:
    """Write the pictures: {name: path beside the document}."""
    from memcalc.accuracy.report import report
    from memcalc.output.charts import accuracy, house
    from memcalc.output.charts.accuracy_report import DRAW, chart_objects
    from memcalc.planning.charts.accuracy import accuracy as accuracy_object

    objects = chart_objects(found)
    drawn = {name: (one, DRAW[name]) for name, one in objects.items()}
    whole = report(priced, "the published runs", {})
    drawn["published"] = (accuracy_object(whole, "published runs"), accuracy.draw)
    for name, (one, draw) in drawn.items():
        house.save(str(folder / f"{name}.png"), one, draw)
    return {name: f"{PICTURES}/{name}.png" for name in drawn}
