"""Error tables as text: by kind, source and other splits; every figure; every row left out, and why."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

from memcalc.output.console import Page
from memcalc.units import gib, si

Found = Mapping[str, Any]
#: More rows left out than this are counted by reason.
_NAMED_ONE_BY_ONE = 20
_LONGEST_SETUP = 34
#: Figures of throughput as a page names them.
_KINDS: Final[Mapping[str, str]] = {
    "tokens_per_s_per_gpu": "tokens/s", "step_s": "step time", "tflops_per_gpu": "TFLOP/s",
    "mfu_pct": "MFU", "hfu_pct": "HFU",
}  # fmt: skip
#: Title of a split's first column -> its name in the report, and which figures it is shown for.
_SPLITS: Final = {
    "By source": ("by_source", ("memory", "throughput")),
    "By confidence": ("by_confidence", ("memory", "throughput")),
    "By priceable": ("by_priceable", ("memory", "throughput")),
    "By model size": ("by_model_size", ("throughput",)),
    "By GPU": ("by_gpu", ("throughput",)),
    "By GPUs": ("by_gpus", ("throughput",)),
}


def accuracy_page(page: Page, found: Found) -> None:
    """The whole page."""
    page.line(f"accuracy on {_counted(found['counts']['rows'], 'row')} of {found['file']}", "bold")
    page.line(counts_line(found["counts"]))
    for note in found["notes"]:
        page.line(note)
    page.line()
    for what in ("memory", "throughput"):
        _tables(page, found, what)
    _promised(page, found)
    _apart(page, "Serving", "engine", found["serving"])
    _apart(page, "Adapters", "stack", found["adapters"])
    _outliers(page, found["outliers"])
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
    """Rows, and the errors of memory over rows and over sources, in one line; `none` is unknown.

    Errors of throughput follow, or stand alone where only they were asked for.
    """
    counts = found["counts"]
    words = [f"rows {counts['rows']} scored {counts['scored']}"]
    for what, prefix in (("memory", ""), ("throughput", "throughput_")):
        if what in found["what"]:
            words.append(_quiet(found[what].get("all", {}), found["over_sources"][what], prefix))
    return " ".join([*words, f"unexpressed {counts['unexpressed']}"])


def _quiet(whole: Found, sources: Found, prefix: str) -> str:
    def said(value: float | None) -> str:
        return "none" if value is None else f"{value:.4g}"

    names = ("mae_pct", "bias_pct", "worst_pct")
    figures = [f"{prefix}{name} {said(whole.get(name))}" for name in names]
    over = (
        f"{prefix}sources {sources['sources']} {prefix}sources_mae_pct {said(sources['mae_pct'])}"
    )
    return " ".join([*figures, over])


def _counted(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _tables(page: Page, found: Found, what: str) -> None:
    whole = found[what]
    if not whole:
        return
    heads = (f"{what.capitalize()}, error %", ">rows", ">counted as", ">mean", ">bias",
             ">median", ">p90", ">worst")  # fmt: skip
    rows = [
        (_KINDS.get(kind, kind), str(s["n"]), f"{s['measurements']:.3g}", *_errors(s))
        for kind, s in whole.items()
        if kind != "all" or len(whole) > 2
    ]
    every = whole["all"]["each"]
    if whole["all"]["measurements"] < whole["all"]["n"]:
        rows.append(("all, each row as one", "", "", f"{every['mae_pct']:.1f}",
                     f"{every['bias_pct']:+.1f}", f"{every['median_pct']:.1f}",
                     f"{every['p90_pct']:.1f}", ""))  # fmt: skip
    over = found["over_sources"][what]
    mean = f"mean of {_counted(over['sources'], 'source')}"
    rows.append((mean, "", "", f"{over['mae_pct']:.1f}", f"{over['bias_pct']:+.1f}", "", "",
                 f"{over['worst_pct']:.1f}"))  # fmt: skip
    page.table(heads, rows)
    for title, (name, shown) in _SPLITS.items():
        if what in shown:
            split = _split if what == "memory" else _whole_split
            split(page, title, found[name][what])


def _whole_split(page: Page, title: str, parts: Mapping[str, Mapping[str, Any]]) -> None:
    """A line a group: errors of throughput are of speed, whichever figure a row gives."""
    rows = [(name, str(s["all"]["n"]), *_errors(s["all"])) for name, s in parts.items() if s]
    if rows:
        page.table((title, ">rows", ">mean", ">bias", ">median", ">p90", ">worst"), rows)


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


def _promised(page: Page, found: Found) -> None:
    """The rows that the accuracy promised of throughput covers."""
    rows, over = found["promised"]["rows"], found["promised"]["over_sources"]
    if not rows["n"]:
        return
    page.line(
        "of these, training on A100, H100 and B200, priceable, of high confidence, of sources "
        "nothing was fitted to:"
    )
    each = rows["each"]
    page.table(
        ("Promised, error %", ">rows", ">mean", ">bias", ">median", ">p90", ">worst"),
        [
            ("measurements", f"{rows['measurements']:.3g}", *_errors(rows)),
            ("each row as one", str(rows["n"]), f"{each['mae_pct']:.1f}", f"{each['bias_pct']:+.1f}",
             f"{each['median_pct']:.1f}", f"{each['p90_pct']:.1f}", ""),
            (f"mean of {_counted(over['sources'], 'source')}", "", f"{over['mae_pct']:.1f}",
             f"{over['bias_pct']:+.1f}", "", "", f"{over['worst_pct']:.1f}"),
        ],
    )  # fmt: skip


def _apart(page: Page, title: str, group: str, found: Found) -> None:
    """Runs that serve, by engine, and that train adapters, by stack: scored apart from all others."""
    rows = [
        (what, name, str(score["n"]), *_errors(score))
        for what in ("memory", "throughput")
        for name, score in found[what].items()
    ]
    if rows:
        heads = (
            f"{title}, error %",
            group,
            ">rows",
            ">mean",
            ">bias",
            ">median",
            ">p90",
            ">worst",
        )
        page.table(heads, rows)


def _outliers(page: Page, far: Sequence[Found]) -> None:
    """Rows further out than 25 %, named."""
    rows: list[tuple[str, ...]] = [
        (
            row["id"],
            row["source"],
            _KINDS.get(row["kind"], str(row["kind"])),
            f"{row['error_pct']:+.1f}",
        )
        for row in far
    ]
    if rows:
        page.table(("Further out than 25 %", "source", "kind", ">error %"), rows)


def _figures(page: Page, rows: Sequence[Found]) -> None:
    """Predicted beside measured, a table for each source and kind."""
    groups: dict[tuple[str, str, bool], list[Found]] = defaultdict(list)
    for row in rows:
        groups[row["source"], row["kind"], row["scored"]].append(row)
    for (source, kind, scored), each in groups.items():
        beside = f" beside {each[0]['held_against']}" if each[0]["what"] == "memory" else ""
        page.line(
            f"{source}: {_KINDS.get(kind, kind)}"
            + ("" if scored else f", shown{beside}, not scored")
        )
        page.table(
            ("row", "setup", ">predicted", ">measured", ">error %"),
            [
                (row["id"], row["setup"][:_LONGEST_SETUP], _figure(row, "predicted"),
                 _figure(row, "measured"), f"{row['error_pct']:+.1f}")
                for row in each
            ],
        )  # fmt: skip


def _figure(row: Found, name: str) -> str:
    if row["unit"] == "bytes":
        return gib(row[name])
    value, unit = row[name], row["unit"]
    plain = {"%": f"{value:.1f} %", "tokens/s": f"{value:,.0f} tokens/s", "s": f"{value:.4g} s"}
    return plain.get(unit) or si(value, unit)


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
