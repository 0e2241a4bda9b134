"""The top of the page: the verdict with a gauge, the numbers that matter, the command, the inputs.

Checked by: cli/test_report.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memcalc.output.report.markup import bullets, esc
from memcalc.output.time_text import duration
from memcalc.units import gib

Found = Mapping[str, Any]
_WIDE = 1000  # units across the gauge
_LONG = 36  # characters of an input that take a line of their own


def verdict(found: Found) -> str:
    """Whether it fits, by how much and on what, before anything else; what would make it fit."""
    told = found["verdict"]
    state = told["verdict"] or "no-verdict"
    said = f'<p class="says">{esc(told["headline"])}</p>\n<p>{esc(told["detail"])}</p>\n'
    estimate = found["estimate"]
    advice = estimate["advice"]
    more = ""
    if advice:
        more = f'<div class="advice"><strong>What would make it fit</strong>\n{bullets(advice)}</div>\n'
    return (
        f'<div class="verdict {state}" role="region" aria-label="Verdict">\n{said}'
        f"{_gauge(estimate['memory'])}{more}</div>\n"
    )


def _gauge(memory: Mapping[str, Any]) -> str:
    """Driver-used bytes with their band, against what is usable."""
    used, usable = memory["device_used_bytes"], memory["usable_bytes"]
    low, high = memory["low_bytes"], memory["high_bytes"]
    if used is None or usable is None or low is None or high is None:
        return ""
    most = max(usable, high) * 1.02
    at = {name: round(size / most * _WIDE, 1) for name, size in
          (("used", used), ("usable", usable), ("low", low), ("high", high))}  # fmt: skip
    band = at["high"] - at["low"]
    said = f"{gib(used)} needed, {gib(usable)} usable; the band goes from {gib(low)} to {gib(high)}"
    return (
        f'<svg class="gauge" viewBox="0 0 {_WIDE} 32" preserveAspectRatio="none" role="img" '
        f'aria-label="{esc(said)}">'
        f'<rect class="track" x="0" y="8" width="{_WIDE}" height="16"/>'
        f'<rect class="used" x="0" y="8" width="{at["used"]}" height="16"/>'
        f'<rect class="band" x="{at["low"]}" y="3" width="{band:.1f}" height="26"/>'
        f'<rect class="usable" x="{at["usable"] - 2:.1f}" y="0" width="4" height="32"/></svg>\n'
        f'<ul class="key"><li><i></i>driver-used {gib(used)}</li>'
        f'<li><i class="k-band"></i>its band, {gib(low)} to {gib(high)}</li>'
        f'<li><i class="k-usable"></i>usable {gib(usable)}</li></ul>\n'
    )


def tiles(found: Found) -> str:
    """The four numbers of memory, then step time, throughput and utilisation, each with its band."""
    memory, time = found["estimate"]["memory"], found["estimate"]["time"]
    band = "reserved and what the driver takes"
    if memory["low_bytes"] is not None and memory["high_bytes"] is not None:
        band = f"{gib(memory['low_bytes'])} to {gib(memory['high_bytes'])}"
    first = (
        ("Requested", _size(memory["peak_requested_bytes"]), "bytes of tensors at the peak"),
        ("Allocated", _size(memory["peak_allocated_bytes"]), "max_memory_allocated"),
        ("Reserved", _size(memory["peak_reserved_bytes"]), "max_memory_reserved"),
        ("Driver-used", _size(memory["device_used_bytes"]), band),
    )
    shown = _row(first, "Peak memory of one GPU")
    return shown + (_row(_times(time), "Speed") if time["step_s"] is not None else "")


def _times(time: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    step, low, high = time["step_s"], time["low_s"], time["high_s"]
    banded = low is not None and high is not None
    each = time["tokens_per_s_per_gpu"]
    rows = [
        ("Step", duration(step), f"{duration(low)} to {duration(high)}" if banded else "no band")
    ]
    for name, rate in (("Tokens/s", time["tokens_per_s"]), ("Tokens/s a GPU", each)):
        said = f"{rate * step / high:,.0f} to {rate * step / low:,.0f}" if banded else "no band"
        rows.append((name, f"{rate:,.0f}", said))
    if time["mfu"] is None:
        rows.append(("MFU", "unknown", "no peak rate of this device"))
        return rows
    mfu = time["mfu"]
    said = f"{mfu * step / high:.1%} to {mfu * step / low:.1%}; " if banded else ""
    rows.append(("MFU", f"{mfu:.1%}", f"{said}causal {time['mfu_causal']:.1%}"))
    return rows


def _size(value: int | None) -> str:
    return "unknown" if value is None else gib(value)


def _row(rows: list[tuple[str, str, str]] | tuple[tuple[str, str, str], ...], name: str) -> str:
    inside = "\n".join(
        f'<div class="tile"><dt>{esc(what)}</dt><dd class="big">{esc(value)}</dd>'
        f'<dd class="small">{esc(said)}</dd></div>'
        for what, value, said in rows
    )
    return f'<dl class="tiles" aria-label="{esc(name)}">\n{inside}\n</dl>\n'


def inputs(found: Found) -> str:
    """The command that makes the page again, what was stated, and the defaults that matter."""
    command = (
        f'<div class="command"><pre id="command">{esc(found["command"])}</pre>'
        '<button type="button" data-copies="command" aria-live="polite" hidden>Copy</button></div>\n'
    )
    stated = [row for row in found["inputs"] if row["stated"]]
    default = [row for row in found["inputs"] if not row["stated"]]
    return f"{command}<h3>Stated</h3>\n{_pairs(stated)}" + (
        f"<h3>Defaults, and what follows</h3>\n{_pairs(default)}" if default else ""
    )


def _pairs(rows: list[Mapping[str, Any]]) -> str:
    inside = "".join(
        f"<div{_wide(row['value'])}><dt>{esc(row['name'])}</dt><dd>{esc(row['value'])}</dd></div>"
        for row in sorted(rows, key=lambda row: len(row["value"]) <= _LONG)
    )
    return f'<dl class="pairs">{inside}</dl>\n'


def _wide(value: str) -> str:
    """A long value has a line of its own."""
    return ' class="wide"' if len(value) > _LONG else ""
