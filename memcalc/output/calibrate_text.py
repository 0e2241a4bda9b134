"""A calibration as text: what was measured on what, and the fitted figures in one table a class.

Every figure has the number of points it stands on and its error: the median of |fit / measured - 1|,
or, marked +-, half the distance of p90 from p10 of the one point it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from memcalc.output.console import Page
from memcalc.units import MIB, si

Row = Mapping[str, Any]
#: Spread of a steady point, and the share of wider ones that is still usual.
_STEADY, _FEW_UNSTEADY = 0.1, 0.2
#: (what, figure, second figure)
Cells = tuple[str, str, str]


def calibration_page(page: Page, profile: Mapping[str, Any], path: str | None = None) -> None:
    """The whole profile but its single points."""
    device = profile["device"]
    page.line(f"calibration {profile['name']}", "bold")
    page.line(_device_line(device))
    page.line(_run_line(profile))
    page.line()
    for title, columns, rows in _tables(profile["summary"]):
        page.table((title, *columns, ">n", ">error"), rows)
    page.line("error: median |fit / measured - 1|; +-: half of p90 - p10 of the one point")
    if (line := unsteady_line(profile["points"])) is not None:
        page.line(line)
    for line in skipped_lines(profile["skipped"]):
        page.line(line)
    if path is not None:
        page.line(f"file: {path}")


def quiet_line(profile: Mapping[str, Any], ceiling: float | None) -> str:
    """Name, ceiling of the products, points and what was skipped, in base units."""
    shown = "none" if ceiling is None else f"{ceiling:.0f}"
    counts = f"points {len(profile['points'])} skipped {len(profile['skipped'])}"
    return f"{profile['name']} gemm_flops_per_s {shown} {counts}"


def skipped_lines(skipped: Sequence[Row]) -> list[str]:
    """What was not measured, the points counted by reason."""
    reasons = Counter(str(row["reason"]) for row in skipped)
    return [f"not measured: {count} x {reason}" for reason, count in reasons.items()]


def unsteady_line(points: Sequence[Row]) -> str | None:
    """A warning where many points spread widely, as they do when something else uses the device."""
    wide = [p for p in points if (p["p90_s"] - p["p10_s"]) / 2 > _STEADY * p["median_s"]]
    if len(wide) <= _FEW_UNSTEADY * len(points):
        return None
    return (
        f"unsteady: {len(wide)} of {len(points)} points spread over +-{_STEADY * 100:.0f} %; "
        "measure again on an idle device"
    )


def _device_line(device: Row) -> str:
    threads = device.get("cpu_threads")
    words = [str(device["name"])]
    if device["type"] == "cpu" and threads is not None:
        words.append(f"{threads} thread{'s' * (threads != 1)}")
    for key, form in (
        ("compute_capability", "compute capability {}"), ("multiprocessors", "{} multiprocessors"),
        ("power_limit_w", "{} W limit"), ("driver", "driver {}"),
    ):  # fmt: skip
        if device.get(key) is not None:
            words.append(form.format(device[key]))
    return ", ".join(words)


def _run_line(profile: Row) -> str:
    words = [f"torch {profile['torch']}", f"memcalc {profile['memcalc']}", str(profile["date"])]
    if (duration := _number(profile, "duration_s")) is not None:
        words.append(f"{duration:.0f} s")
    words.append(f"{len(profile['points'])} points")
    if profile.get("small") is True:
        words.append("tiny sizes, of no use but to tests")
    return ", ".join(words)


def _tables(summary: Mapping[str, Any]) -> list[tuple[str, tuple[str, str], list[list[str]]]]:
    """(title, heads of the two figures, rows) of each class that the summary has."""
    found = []
    for title, columns, classes in _CLASSES:
        rows = [
            [*maker(row), str(row.get("n", "-")), _error(row)]
            for name, maker in classes
            for row in summary.get(name, ())
        ]
        if rows:
            found.append((title, columns, rows))
    return found


def _error(row: Row) -> str:
    if (error := _number(row, "median_relative_error")) is not None:
        return f"{error * 100:.1f} %"
    spread = _number(row, "relative_spread")
    return "-" if spread is None else f"+-{spread * 100:.1f} %"


def _number(row: Row, key: str) -> float | None:
    """A figure of a row; None where the row has none, or a file written by hand has something else."""
    value = row.get(key)
    return float(value) if isinstance(value, int | float) else None


def _get(row: Row, key: str, unit: str) -> str:
    """A figure with its unit, `-` where the row has none."""
    value = _number(row, key)
    return "-" if value is None else si(value, unit)


def _seconds(row: Row, key: str) -> str:
    value = _number(row, key)
    if value is None:
        return "-"
    for factor, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns"


def _words(row: Row, *keys: str) -> str:
    return " ".join(str(row[key]) for key in keys if row.get(key) is not None)


def _ceiling(row: Row) -> Cells:
    slowed = _number(row, "slowed_by")
    said = "-" if slowed is None else f"end / begin {slowed:.3f}"
    what = f"{_words(row, 'dtype', 'how')} {row.get('size', '?')}^3"
    return what, _get(row, "flops_per_s", "FLOP/s"), said


def _gemm(row: Row) -> Cells:
    borrowed = f" of {row['t0_from']}" if row.get("t0_from") else ""
    return (
        _words(row, "dtype", "part"), _get(row, "flops_per_s", "FLOP/s"),
        f"{_seconds(row, 't0_s')}{borrowed}",
    )  # fmt: skip


def _attention(row: Row) -> Cells:
    half = _number(row, "half_seq_len")
    shown = "-" if half is None else f"{half:.0f}"
    what = f"{_words(row, 'kernel', 'direction', 'dtype')} d={row.get('head_dim', '?')}"
    return what, _get(row, "flops_per_s", "FLOP/s"), shown


def _bandwidth(row: Row) -> Cells:
    size = _number(row, "tensor_bytes")
    where = "" if size is None else f" {size / MIB:.0f} MiB"
    return f"{_words(row, 'what')}{where}", _get(row, "bytes_per_s", "B/s"), "-"


def _elementwise(row: Row) -> Cells:
    return "element-wise", _get(row, "bytes_per_s", "B/s"), f"t0 {_seconds(row, 't0_s')}"


def _norm(row: Row) -> Cells:
    return _words(row, "what", "direction", "dtype"), _get(row, "bytes_per_s", "B/s"), "-"


def _optimizer(row: Row) -> Cells:
    what = _words(row, "what", "impl", "dtype")
    each = f"{_seconds(row, 's_per_parameter')}/parameter"
    return what, _get(row, "bytes_per_s", "B/s"), each


def _embedding(row: Row) -> Cells:
    return "embedding backward", _get(row, "bytes_per_s", "B/s"), "-"


def _fixed(row: Row) -> Cells:
    return _words(row, "what", "how", "dtype"), _seconds(row, "seconds"), "-"


def _loss(row: Row) -> Cells:
    what = f"loss {_words(row, 'what', 'dtype')}{' with head' if row.get('with_head') else ''}"
    return what, f"{_seconds(row, 's_per_logit')}/logit", _get(row, "flops_per_s", "FLOP/s")


def _kernel(row: Row) -> Cells:
    return _words(row, "what", "dtype"), _get(row, "bytes_per_s", "B/s"), "-"


def _launch(row: Row) -> Cells:
    return f"launch in a step, {row.get('precision')}", _seconds(row, "seconds"), "-"


def _launch_decode(row: Row) -> Cells:
    return f"launch in a pass, {row.get('precision')}", _seconds(row, "seconds"), "-"


def _few_rows(row: Row) -> Cells:
    what = f"{_words(row, 'name', 'dtype')}, {row.get('rows')} rows"
    return what, _get(row, "bytes_per_s", "B/s"), _seconds(row, "t0_s")


def _cached(row: Row) -> Cells:
    what = f"attention over a cache {row.get('dtype')}"
    return what, _get(row, "bytes_per_s", "B/s"), _get(row, "flops_per_s", "FLOP/s")


def _generation(row: Row) -> Cells:
    return _words(row, "model", "precision", "attention"), _seconds(row, "prompt_s"), (
        _seconds(row, "step_s")
    )  # fmt: skip


def _generated(row: Row) -> Cells:
    return (
        _words(row, "model", "precision", "attention"),
        _ratio(row, "prompt"),
        _ratio(row, "step"),
    )


def _collective(row: Row) -> Cells:
    what = f"{row.get('what')} {row.get('ranks')} ranks"
    return what, _seconds(row, "alpha_s"), _get(row, "bus_bytes_per_s", "B/s")


def _two_depth(row: Row) -> Cells:
    what = f"{row.get('model')} s={row.get('seq_len')} {_words(row, 'precision', 'attention')}"
    what += "" if row.get("stack") in (None, "torch") else f" {row['stack']}"
    return what, _seconds(row, "block_s"), _seconds(row, "rest_s")


def _residual(row: Row) -> Cells:
    what = f"{row.get('model')} {_words(row, 'precision', 'attention')}"
    what += "" if row.get("stack") in (None, "torch") else f" {row['stack']}"
    return what, _ratio(row, "step"), _ratio(row, "block")


def _ratio(row: Row, key: str) -> str:
    value = _number(row, key)
    return "-" if value is None else f"{value:.3f}"


_Maker = Callable[[Row], Cells]
#: Title, heads of the two figures, and the summary's classes under it.
_CLASSES: tuple[tuple[str, tuple[str, str], tuple[tuple[str, _Maker], ...]], ...] = (
    ("products", (">ceiling", ">t0"), (("gemm_ceiling", _ceiling), ("gemm", _gemm))),
    ("attention", (">long s", ">half at s"), (("attention", _attention),)),
    ("memory", (">rate", ">beside"),
     (("bandwidth", _bandwidth), ("elementwise", _elementwise), ("norm", _norm),
      ("optimizer", _optimizer), ("embedding_backward", _embedding), ("kernel", _kernel))),
    ("times", (">each", ">rate"), (("fixed", _fixed), ("launch", _launch),
     ("launch_decode", _launch_decode), ("loss", _loss))),
    ("generating", (">rate", ">beside"), (("few_rows", _few_rows), ("decode_attention", _cached))),
    ("collectives", (">alpha", ">bus"), (("collective", _collective),)),
    ("two depths", (">a block", ">the rest"), (("two_depth", _two_depth),)),
    ("generations", (">prompts", ">a step"), (("generation", _generation),)),
    ("measured / predicted", (">prompts", ">a step"), (("residual_decode", _generated),)),
    ("measured / predicted", (">step", ">a block"), (("residual", _residual),)),
)  # fmt: skip
