"""A default calibration as text: its constants, what is assumed of them, and how far off they were.

Constants are shares of a device's own datasheet figures, seconds, or plain numbers; which formula each
is of: docs/kernels.md. Errors are of kernels that no fit has seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from memcalc.output.console import Page

Row = Mapping[str, Any]
#: Keys of the whole file that are said in sentences, or not at all.
_SAID = {
    "schema", "kind", "name", "basis", "verified", "fitted_on", "reference", "errors", "file",
    "architectures",
}  # fmt: skip


def constants_page(page: Page, content: Mapping[str, Any]) -> None:
    """Every constant of a default calibration, then its errors."""
    page.line(f"calibration {content['name']}", "bold")
    page.line(f"architectures: {', '.join(content.get('architectures', ()))}; {content['basis']}")
    if content.get("fitted_on"):
        page.line(f"fitted on: {', '.join(content['fitted_on'])}")
    if content.get("reference"):
        page.line(f"tables: {content['reference']}")
    page.line("shares are of a device's own datasheet figure; names ending in _s are seconds")
    page.line()
    plain = {key: value for key, value in content.items() if key not in _SAID}
    page.table(("constant", ">value"), list(_constants(plain)))
    sources = list(_sources(plain))
    if sources:
        page.table(("assumed", "why"), sources)
    errors = content.get("errors", ())
    if errors:
        heads = ("system", "kernel", "sizes", ">n", ">error", ">bias", ">p90", ">plain")
        page.table(heads, [_error(row) for row in errors if row["sizes"] == "all"])
        page.line("on shapes no fit has seen; error: mean of |predicted / measured - 1|, bias with")
        page.line(
            "its sign; plain: error of a roofline or log-linear fit; --json has large and small"
        )
    page.line(f"file: {content['file']}")


def _constants(table: Row, prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in table.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _constants(value, f"{name}.")
        elif isinstance(value, list):
            for row in value:
                yield f"{name}, {row['ranks']} ranks", _lines(row)
        elif not key.endswith("source"):
            yield name, f"{value:,g}"


def _lines(row: Row) -> str:
    """Two lines of a collective: seconds, and the share of the link's rate."""
    return " or ".join(
        f"{1e6 * row[f'{size}_s']:.1f} us + {row[f'{size}_share']:.3f}"
        for size in ("small", "large")
    )


def _sources(table: Row, prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _sources(value, f"{prefix}{key}.")
        elif key.endswith("source"):
            of = key.removesuffix("source").rstrip("_")
            yield f"{prefix}{of}".rstrip("."), str(value).removeprefix("assumed, not measured: ")


def _error(row: Row) -> Sequence[str]:
    kernel = row.get("what") or row["form"]
    shares = [f"{100 * row[key]:.1f} %" for key in ("mean_abs", "p90", "plain_mean_abs")]
    system = row["system"].partition("_server")[0]
    bias = f"{100 * row['bias']:+.1f} %"
    name = str(kernel).replace("reduce_scatter", "red_scatter")
    return [system, name, row["sizes"], str(row["n"]), shares[0], bias, *shares[1:]]
