"""Error tables as text: by kind, source, confidence; every figure; every row left out, and why."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from memcalc.output.console import Page
from memcalc.units import gib, si

Found = Mapping[str, Any]
#: More rows left out than this are counted by reason.
_NAMED_ONE_BY_ONE = 20
_LONGEST_SETUP = 34


def accuracy_page(page: Page, found: Found) -> None:
    """The whole page."""
    page.line(f"accuracy on {_counted(found['counts']['rows'], 'row')} of {found['file']}", "bold")
    page.line(counts_line(found["counts"]))
    for note in found["notes"]:
        page.line(note)
    page.line()
    for what in ("memory", "throughput"):
        _tables(page, found, what)
    _figures(page, found["rows"])
    _left_out(page, "Not expressed", found["unexpressed"])
    _left_out(page, "Expressed, nothing to score", found["unscored"])


def counts_line(counts: Mapping[str, int]) -> str:
    """Where every row went."""
    parts = [f"{counts['scored']} scored"]
    if counts["shown_only"]:
        parts.append(f"{counts['shown_only']} shown only")
    parts.append(f"{counts['unexpressed']} not expressed")
    if counts["unscored"]:
        parts.append(f"{counts['unscored']} with nothing to score")
    return ", ".join(parts)


def quiet_line(found: Found) -> str:
    """Rows, and the errors of memory over rows and over sources, in one line; `none` is unknown."""
    memory, counts = found["memory"].get("all", {}), found["counts"]
    sources = found["over_sources"]["memory"]

    def said(value: float | None) -> str:
        return "none" if value is None else f"{value:.4g}"

    return (
        f"rows {counts['rows']} scored {counts['scored']} mae_pct {said(memory.get('mae_pct'))} "
        f"bias_pct {said(memory.get('bias_pct'))} worst_pct {said(memory.get('worst_pct'))} "
        f"sources {sources['sources']} sources_mae_pct {said(sources['mae_pct'])} "
        f"unexpressed {counts['unexpressed']}"
    )


def _counted(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _tables(page: Page, found: Found, what: str) -> None:
    whole = found[what]
    if not whole:
        return
    heads = (f"{what.capitalize()}, error in %", ">rows", ">counted as", ">mean", ">bias",
             ">median", ">p90", ">worst")  # fmt: skip
    rows = [
        (kind, str(s["n"]), f"{s['measurements']:.3g}", *_errors(s))
        for kind, s in whole.items()
        if kind != "all" or len(whole) > 2
    ]
    over = found["over_sources"][what]
    mean = f"mean of {_counted(over['sources'], 'source')}"
    rows.append((mean, "", "", f"{over['mae_pct']:.1f}", f"{over['bias_pct']:+.1f}", "", "",
                 f"{over['worst_pct']:.1f}"))  # fmt: skip
    page.table(heads, rows)
    for by, title in (("source", "By source"), ("confidence", "By confidence"),
                      ("priceable", "By priceable")):  # fmt: skip
        _split(page, title, found[f"by_{by}"][what])


def _split(page: Page, title: str, parts: Mapping[str, Mapping[str, Any]]) -> None:
    rows = [
        (name, kind, str(s["n"]), *_errors(s, False))
        for name, each in parts.items()
        for kind, s in each.items()
        if kind != "all"
    ]
    if rows:
        page.table((title, "kind", ">rows", ">mean", ">bias", ">p90", ">worst"), rows)


def _errors(score: Mapping[str, Any], median: bool = True) -> tuple[str, ...]:
    middle = (f"{score['median_pct']:.1f}",) if median else ()
    return (
        f"{score['mae_pct']:.1f}", f"{score['bias_pct']:+.1f}", *middle,
        f"{score['p90_pct']:.1f}", f"{score['worst_pct']:.1f}",
    )  # fmt: skip


def _figures(page: Page, rows: Sequence[Found]) -> None:
    """Predicted beside measured, a table for each source and kind."""
    groups: dict[tuple[str, str, bool], list[Found]] = defaultdict(list)
    for row in rows:
        groups[row["source"], row["kind"], row["scored"]].append(row)
    for (source, kind, scored), each in groups.items():
        page.line(f"{source}: {kind}" + ("" if scored else ", shown beside allocated, not scored"))
        page.table(
            ("row", "setup", ">predicted", ">measured", ">error %"),
            [
                (row["id"], row["setup"][:_LONGEST_SETUP], _figure(row, "predicted"),
                 _figure(row, "measured"), f"{row['error_pct']:+.1f}")
                for row in each
            ],
        )  # fmt: skip


def _figure(row: Found, name: str) -> str:
    return gib(row[name]) if row["unit"] == "bytes" else si(row[name], row["unit"])


def _left_out(page: Page, title: str, left: Sequence[Found]) -> None:
    if not left:
        return
    if len(left) <= _NAMED_ONE_BY_ONE:
        page.table((title, "reason"), [(row["id"], row["reason"]) for row in left])
        return
    grouped = Counter((row["source"], row["reason"]) for row in left)
    rows = [(str(count), source, reason) for (source, reason), count in grouped.items()]
    page.line(f"{title}: {len(left)} rows (--json and --csv name each)")
    page.table((">rows", "source", "reason"), rows)
