"""A comparison as a table: the terminal's, plain text, Markdown, CSV, and one line for --quiet.

The best of each column among what fits is bold on a terminal, marked * in plain text, bold in Markdown.
Refused setups follow with their reasons. Checked by: cli/test_compare.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from rich import box
from rich.table import Table
from rich.text import Text

from memcalc.output.compare_cells import cell, is_best, is_right
from memcalc.output.console import PLAIN_BOX, Page, plain_text

Found = Mapping[str, Any]
Row = Mapping[str, Any]
#: Characters that a column of text keeps where it must be broken into lines: at least, and if it can.
_LEAST_LABEL, _LEAST_WRAPPED = 6, 18
_STYLES: Final = {"tight": "yellow", "does-not-fit": "red"}


def compare_page(page: Page, found: Found) -> None:
    """Title, finding, the table, and what to know of its figures."""
    page.line(str(found["title"]), "bold")
    if found["subtitle"]:
        page.line(str(found["subtitle"]))
    page.line(str(found["says"]))
    page.line()
    compare_table(page, found)
    for line in remarks(found, "bold" if page.fancy else "*"):
        page.line(line)


def compare_table(page: Page, found: Found) -> None:
    """The rows that were priced, then those refused with why."""
    rows = [row for row in found["rows"] if row["reason"] is None]
    if rows:
        _table(page, found["columns"], [_cells(page, found, row) for row in rows])
    refused = [row for row in found["rows"] if row["reason"] is not None]
    if refused:
        page.line("Refused", "bold")
        labels = [column for column in found["columns"] if column["kind"] == "label"]
        reason = {"name": "reason", "heading": ("because",), "kind": "word"}
        _table(page, [*labels, reason], [_refused(row, labels) for row in refused])


def _table(page: Page, columns: Sequence[Mapping[str, Any]], rows: list[list[Text]]) -> None:
    inside = [max(row[at].cell_len for row in rows) for at in range(len(columns))]
    gaps = len(columns) - 1
    for narrow, gap in ((False, 2), (False, 1), (True, 1)):
        heads = [_heading(*one, narrow) for one in zip(columns, inside, strict=True)]
        widths = [max(most, *map(len, head)) for most, head in zip(inside, heads, strict=True)]
        if sum(widths) + gap * gaps <= page.width:
            break
    wrapped = _wrapped(columns, widths, page.width - gap * gaps)
    shape = Table(
        box=box.SIMPLE_HEAD if page.fancy else PLAIN_BOX, pad_edge=False, show_edge=False,
        header_style="bold", padding=(0, gap - 1), collapse_padding=True,
    )  # fmt: skip
    for at, (column, head) in enumerate(zip(columns, heads, strict=True)):
        shape.add_column(
            "\n".join(head), justify="right" if is_right(column) else "left",
            no_wrap=at not in wrapped, overflow="fold",
            min_width=min(_LEAST_LABEL, widths[at]) if at in wrapped else widths[at],
        )  # fmt: skip
    for row in rows:
        shape.add_row(*row)
    page.console.print(shape)
    page.line()


def _wrapped(columns: Sequence[Mapping[str, Any]], widths: list[int], room: int) -> set[int]:
    """Columns of text to break into lines, the widest first, until the others leave them room."""
    found: set[int] = set()
    text = [at for at, column in enumerate(columns) if column["kind"] in ("label", "word")]
    for at in sorted(text, key=lambda at: -widths[at]):
        needed = sum(_LEAST_WRAPPED if i in found else width for i, width in enumerate(widths))
        if needed <= room and (found or sum(widths) <= room):
            break
        found.add(at)
    return found


def _heading(column: Mapping[str, Any], inside: int, narrow: bool) -> list[str]:
    """A heading's lines: `micro-batch` on two, so that a column of small numbers stays narrow.

    inside: the widest cell; narrow: where the page has no room, `precision` is broken as well.
    """
    lines = list(column["heading"])
    if column["kind"] != "label":
        return lines
    head, dash, tail = lines[0].partition("-")
    if dash:
        return [f"{head}-", tail]
    half = max(inside - 1, (len(head) + 1) // 2)
    return [f"{head[:half]}-", head[half:]] if narrow and half + 2 < len(head) else lines


def _cells(page: Page, found: Found, row: Row) -> list[Text]:
    base = "dim" if page.fancy and row["fits"] is False else ""
    cells = []
    for column in found["columns"]:
        text, style = plain_text(cell(row, column)), base
        if is_best(found, row, column):
            text, style = text if page.fancy else f"*{text}", "bold green"
        elif column["kind"] == "fits":
            style = _STYLES.get(row["verdict"], base)
        cells.append(Text(text, style=style))
    return cells


def _refused(row: Row, labels: Sequence[Mapping[str, Any]]) -> list[Text]:
    return [
        *(Text(plain_text(cell(row, column))) for column in labels),
        Text(plain_text(row["reason"])),
    ]


def remarks(found: Found, best: str) -> Iterator[str]:
    """What the marks mean, the band of the times, and what was left out. best: how the best is marked."""
    rows = [row for row in found["rows"] if row["reason"] is None]
    shown = {column["name"] for column in found["columns"]}
    if any(is_best(found, row, column) for row in rows for column in found["columns"]):
        among = " among what fits" if found["fits_count"] is not None else ""
        yield f"{best}: best of the column{among}"
    if "memory" in shown:
        yield "memory: what the driver reports, on the GPU that needs most"
    if "fits" in shown and any(row["verdict"] == "tight" for row in rows):
        yield "tight: the memory's band reaches beyond the GPU, or cached blocks must be given back"
    if any(row["fits"] is False and row["step_s"] is not None for row in rows):
        yield "speed of what does not fit: as if it did"
    yield from band_lines(found)
    if found["price_usd_per_gpu_hour"] is not None:
        yield f"cost: at {found['price_usd_per_gpu_hour']:g} USD an hour of a GPU"
    elif "cost" in shown:
        yield "cost: at the middle of the GPU profile's dated price range"
    if found["left_out"]:
        yield f"{found['left_out']:,} of {found['count']:,} rows left out by --top"


def band_lines(found: Found) -> Iterator[str]:
    """How far step times may be off, of each calibration."""
    for band in found["bands"]:
        low, high = band["low_share"], band["high_share"]
        if low is None or high is None:
            yield f"step times: rates {band['calibration']}, no band known"
        else:
            basis = f": {band['basis']}" if band["basis"] else ""
            yield (
                f"step times: rates {band['calibration']}, {-low:.0%} less to {high:.0%} more{basis}"
            )


def markdown_text(found: Found) -> str:
    """The table in Markdown with its finding above it; the best of each column in bold."""
    columns = found["columns"]
    lines = [f"**{found['title']}**", "", *filter(None, [found["subtitle"]]), "", found["says"], ""]
    rows = [row for row in found["rows"] if row["reason"] is None]
    if rows:
        lines += _markdown_row(" ".join(column["heading"]) for column in columns)
        lines += _markdown_row("---:" if is_right(column) else "---" for column in columns)
        for row in rows:
            lines += _markdown_row(
                f"**{cell(row, column)}**" if is_best(found, row, column) else cell(row, column)
                for column in columns
            )
    refused = [row for row in found["rows"] if row["reason"] is not None]
    if refused:
        labels = [column for column in columns if column["kind"] == "label"]
        lines += ["", *_markdown_row([*(c["name"] for c in labels), "refused because"])]
        lines += _markdown_row("---" for _ in range(len(labels) + 1))
        for row in refused:
            lines += _markdown_row([*(cell(row, c) for c in labels), row["reason"]])
    lines += ["", *(f"- {line}" for line in remarks(found, "bold"))]
    return "\n".join([*lines, "", str(found["source"]), ""])


def _markdown_row(cells: Any) -> list[str]:
    shown = (" ".join(plain_text(str(text)).replace("|", "\\|").split()) for text in cells)
    return [f"| {' | '.join(shown)} |"]


def csv_rows(found: Found, asked: bool) -> list[dict[str, Any]]:
    """Rows for CSV, at full precision: every figure, or, where columns were asked for, those."""
    if not asked:
        return [dict(row) for row in found["rows"]]
    keys = [column["key"] for column in found["columns"] if column["kind"] != "label"]
    return [
        {"labels": row["labels"], **{key: row[key] for key in keys}, "reason": row["reason"]}
        for row in found["rows"]
    ]


def quiet_line(found: Found) -> str:
    """Counts and the best setup in one line; `none` is unknown."""
    best = found["best"] or {}

    def said(key: str) -> str:
        return "none" if best.get(key) is None else f"{best[key]:.6g}"

    fitting = "none" if found["fits_count"] is None else str(found["fits_count"])
    return (
        f"cases {found['count']} fit {fitting} refused {found['refused_count']} "
        f"tokens_per_s_per_gpu {said('tokens_per_s_per_gpu')} best {best.get('command', 'none')}"
    )
