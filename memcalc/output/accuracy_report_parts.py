"""Tables of REPORT.md, each a list of lines of Markdown.

Checked by: unit/test_report_accuracy_text.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

Found = Mapping[str, Any]
_FIGURES: Final = ("median_pct", "mean_pct", "bias_pct", "p90_pct", "worst_pct")
_HEADS: Final = (
    "n",
    "median",
    "mean",
    "bias",
    "p90",
    "worst",
    "textbook: median",
    "mean",
    "bias",
    "worst",
)
NOT_YET: Final = "not measured yet"


def percent(value: float | None, signed: bool = False) -> str:
    """A figure in percent with a digit, whole from 100 on; 0 is exact."""
    if value is None:
        return ""
    if value == 0:
        return "0"
    if abs(value) < 0.05:
        return "+0.0" if signed and value > 0 else "-0.0" if signed else "< 0.1"
    whole = abs(value) >= 99.95
    sign = "+" if signed else ""
    return f"{value:{sign},.0f}" if whole else f"{value:{sign}.1f}"


def rows(heads: Sequence[str], lines: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """A table whose first columns are text and whose others are figures."""
    marks = ["---"] * left + ["--:"] * (len(heads) - left)
    every = [heads, marks, *lines]
    return [f"| {' | '.join(_cell(cell) for cell in line)} |" for line in every]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def figures(score: Found | None) -> list[str]:
    """median, mean, bias, p90, worst of a score; blanks of none."""
    if score is None:
        return [""] * len(_FIGURES)
    return [percent(score[name], name == "bias_pct") for name in _FIGURES]


def beside(score: Found | None) -> list[str]:
    """The textbook's: median, mean, bias, worst."""
    median, mean, bias, _, most = figures(score)
    return [median, mean, bias, most]


def table(title: str, groups: Mapping[str, Found]) -> list[str]:
    """A line a group, memcalc and textbook."""
    lines = [
        [name, f"{both['memcalc']['n']:,}", *figures(both["memcalc"]), *beside(both["textbook"])]
        for name, both in groups.items()
    ]
    return rows((title, *_HEADS), lines)


def classes_table(classes: Sequence[Found]) -> Iterator[str]:
    """A line a class; below it what the mean over its sources is."""
    lines = []
    for one in classes:
        score = one["memcalc"]
        said = figures(score) if score else [NOT_YET, *[""] * 4]
        lines.append(
            [one["name"], one["against"], f"{one['n']:,}", *said, *beside(one["textbook"])]
        )
    yield from rows(("class", "held against", *_HEADS), lines, left=2)
    for one in classes:
        over = one["sources"]
        if over is not None and over["n"] > 1 and not one["group"].startswith("Time"):
            yield ""
            yield (
                f"{one['name']}, {one['n']:,} rows: over its {over['n']} sources, each as one, mean "
                f"{percent(over['mean_pct'])} %, bias {percent(over['bias_pct'], True)} %."
            )


def kernels(found: Sequence[Found]) -> Iterator[str]:
    """Kernels by kind and size: shapes, and the least and the most of the systems' means."""
    yield (
        "Seconds of single kernels on shapes that no fit has seen, from public tables; beside "
        "them a plain fit "
        "(a launch, FLOPs over a rate, bytes over another) on the same shapes. By system: "
        "docs/kernels.md."
    )
    yield ""
    groups: dict[tuple[str, str], list[Found]] = {}
    for row in found:
        groups.setdefault((row["kernel"], row["sizes"]), []).append(row)
    lines = []
    for (kernel, sizes), each in groups.items():
        lines.append([
            f"{kernel}, {_SIZES[sizes]}", f"{len(each)}", f"{sum(row['n'] for row in each):,}",
            _span(each, "mean_pct"), _span(each, "bias_pct", True), _span(each, "p90_pct"),
            _span(each, "plain_mean_pct"),
        ])  # fmt: skip
    heads = ("kernel", "systems", "shapes", "mean", "bias", "p90", "plain fit: mean")
    yield from rows(heads, lines)


_SIZES: Final = {"all": "all sizes", "large": "above 2e10 FLOPs", "small": "below 2e10 FLOPs"}


def _span(each: Sequence[Found], name: str, signed: bool = False) -> str:
    values = [row[name] for row in each]
    return f"{percent(min(values), signed)} to {percent(max(values), signed)}"


def verdicts(found: Found) -> Iterator[str]:
    """Runs that ran, and how many are said to."""
    n = found["n"]
    if not n:
        yield "No row whose verdict is known."
        return
    yield (
        f"{n} published rows state everything and ran on a card as it is sold: that they fit is "
        "known. memcalc "
        f"says so of {found['memcalc']} ({100 * found['memcalc'] / n:.1f} %), the textbook of "
        f"{found['textbook']} "
        f"({100 * found['textbook'] / n:.1f} %). Rows whose memory was published go through the "
        "allocator's "
        "replay, the others are judged by allocated bytes. No source prints setups that ran out "
        "of memory, so "
        "that the other half of the verdict is shown by no row: the textbook, which leaves out "
        "what it does not "
        "count, is never put to the test there."
    )
    for row in found["wrong"]:
        yield f"- said not to fit: {row['id']}, {row['source']}, {row['said']} on {row['gpu']}"


def bands(found: Found) -> Iterator[str]:
    """How often the bands hold of runs that did not make them."""
    if not found:
        yield "Not of the short form: its runs are too few."
        return
    yield (
        "An estimate prints a band for its step time and for driver-used memory: nine of ten "
        "published runs of its "
        "class lie inside (`profiles/bands`, made by `python -m benchmarks.time_bands`). It is "
        "tested on evaluation "
        "rows with bands made without them: without their whole source, as a new cluster or code "
        "base would "
        "meet it, and with the setups dealt into ten parts. Width: high - low over the "
        "prediction, the median."
    )
    yield ""
    lines = []
    for name in ("step time", "driver-used memory"):
        for how, said in _TESTS.items():
            one = found[name][how]
            lines.append([name, said, f"{one['n']}", f"{one['inside']}", f"{100 * one['share']:.1f}",
                          f"{100 * one['width']:.0f}"])  # fmt: skip
    heads = ("band of", "made of", "rows", "inside", "inside, %", "median width, %")
    yield from rows(heads, lines, left=2)
    yield ""
    lines = [
        [name, source, f"{inside} of {of}"]
        for name in ("step time", "driver-used memory")
        for source, (inside, of) in found[name]["by_source"].items()
    ]
    yield from rows(("band of", "source left out", "inside"), lines, left=2)
    yield ""
    yield from _printed(found)


_TESTS: Final = {
    "sources": "all other sources", "parts": "nine parts of ten", "all": "all rows, these among them",
}  # fmt: skip


def _printed(found: Found) -> Iterator[str]:
    """The bands themselves."""
    lines = []
    for one in found["classes"]:
        where = " on ".join(part for part in (one["stack"], one["architecture"]) if part)
        lines.append(["step time", where or "anything else", f"{one['setups']}", f"{one['low']:.3f}",
                      f"{one['high']:.3f}"])  # fmt: skip
    memory = found["memory"]
    lines.append(["driver-used memory", "everything, or as far as open figures reach",
                  f"{memory['setups']}", f"{memory['low']:.3f}", f"{memory['high']:.3f}"])  # fmt: skip
    yield from rows(("band of", "class", "setups", "low", "high"), lines, left=2)


def worst(classes: Sequence[Found]) -> list[str]:
    """The rows of each class that lie furthest out."""
    lines = [
        [one["name"], row["id"], row["said"], percent(row["error_pct"], True),
         percent(row["textbook_pct"], True), row["why"] or "not known"]
        for one in classes for row in one["worst"]
    ]  # fmt: skip
    heads = ("class", "row", "setup", "error", "textbook", "why")
    marks = ["---", "---", "---", "--:", "--:", "---"]
    return [f"| {' | '.join(_cell(cell) for cell in line)} |" for line in (heads, marks, *lines)]


def fitted(found: Found) -> Iterator[str]:
    """What constants came from published rows."""
    yield (
        "- Whole steps take longer than their kernels: one factor from each of two sources, "
        f"{' and '.join(found['sources'])} (`python -m benchmarks.residual_fit`). Their speeds are a class "
        "of their own above, which is no evidence; their memory is, for nothing about memory is fitted."
    )
    yield (
        "- The time Python takes to launch a kernel in transformers' generation: two rows of "
        f"{found['serving']}, whose rates do not count."
    )
    yield (
        "- Rates of kernels: half of the shapes of public tables; the other half is what the section on "
        "kernels shows."
    )
    yield "- Bands: every evaluated row; each is tested on bands made without it."
    yield "- CPU rates: a calibration of the same CPU, which has other sizes than the models timed."


def held(found: Sequence[Found]) -> Iterator[str]:
    """What only tests hold."""
    yield (
        "Every row is a test that fails on the first difference beyond its result. A run of the "
        "tests takes a part "
        "of the drawn configurations, all of them with `MEMCALC_DRAWS=all`: n is of all."
    )
    yield ""
    lines = [
        [
            row["what"],
            row["against"],
            row["n"],
            row["result"],
            ", ".join(_name(t) for t in row["tests"]),
        ]
        for row in found
    ]
    heads = ("what", "held against", "n", "result", "tests")
    marks = ["---", "---", "--:", "---", "---"]
    yield from (f"| {' | '.join(_cell(c) for c in line)} |" for line in (heads, marks, *lines))


def _name(test: str) -> str:
    return f"`{test.removeprefix('tests/')}`"
