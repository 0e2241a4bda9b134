"""The whole page from the report's object: one file, nothing loaded, the object inside for machines.

The same object makes the same bytes. Checked by: cli/test_report.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from memcalc.output.progress import Tell
from memcalc.output.report import beside, ledger, memory, overview, speed
from memcalc.output.report.look import policy, script, style
from memcalc.output.report.markup import bullets, esc, heads, table
from memcalc.output.report.pictures import figure

Found = Mapping[str, Any]
Draw = Callable[[str], str]


def html(found: Found, tell: Tell | None = None) -> str:
    """The page. tell: hears of every chart drawn."""
    compared = found["comparison"]
    charts = dict(found["charts"])
    if compared is not None:
        charts["compare"] = {"finding": compared["says"], "object": compared}
    pictures: dict[str, str] = {}
    for done, (kind, chart) in enumerate(charts.items(), 1):
        pictures[kind] = figure(kind, chart)
        if tell is not None:
            tell("charts", done, len(charts))
    sections = list(_sections(found, lambda kind: pictures.get(kind, "")))
    title = f"{found['title']}: {found['verdict']['headline']}"
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{esc(policy())}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n'
        f'<meta name="generator" content="memcalc {esc(found["memcalc"])}">\n'
        f"<title>{esc(title)}</title>\n<style>{style()}</style>\n</head>\n<body>\n"
        f"{_top(found, sections)}<main>\n{overview.verdict(found)}{overview.tiles(found)}"
        f"{''.join(_section(*one) for one in sections)}</main>\n{_end(found)}"
        f'<script type="application/json" id="memcalc-report">{_data(found)}</script>\n'
        f"<script>{script()}</script>\n</body>\n</html>\n"
    )


def _top(found: Found, sections: list[tuple[str, str, str]]) -> str:
    about = ". ".join(text for text in (found["label"], found["subtitle"], found["layout"]) if text)
    links = "".join(f'<li><a href="#{name}">{esc(head)}</a></li>' for name, head, _ in sections)
    return (
        f'<header class="top">\n<div class="bar"><h1>{esc(found["title"])}</h1>'
        f'<button type="button" id="theme" title="Other colours" hidden>Dark</button></div>\n'
        f'<p class="under">{esc(about)}</p>\n'
        f'<nav aria-label="Contents"><ul>{links}</ul></nav>\n</header>\n'
    )


def _section(name: str, head: str, body: str) -> str:
    return f'<section id="{name}" aria-labelledby="{name}-head">\n<h2 id="{name}-head">{esc(head)}</h2>\n{body}</section>\n'  # noqa: E501


def _sections(found: Found, drawn: Draw) -> Iterator[tuple[str, str, str]]:
    """(id, heading, body) of every section there is something for."""
    estimate = found["estimate"]
    yield "setup", "Setup", overview.inputs(found)
    if found["comparison"] is not None:
        yield "comparison", "Comparison", _comparison(found, drawn)
    yield (
        "memory", "Where the memory goes",
        drawn("breakdown") + memory.breakdown(found) + memory.largest(found) + memory.states(found)
        + memory.host(found),
    )  # fmt: skip
    yield "step", "Memory over the step", drawn("timeline") + memory.phases(found)
    if estimate["memory"]["stage"] is not None:
        yield "stages", "Pipeline stages", drawn("pipeline") + memory.stages(found)
    if estimate["time"]["step_s"] is not None:
        body = speed.parts(found) + speed.rates(found) + speed.exchanges(found) + drawn("roofline")
        yield "time", "Time of a step", body
    yield "ledger-of-ops", "Ledger", ledger.ledger(found)
    yield "notes", "Assumptions and notes", _notes(estimate)
    yield "sources", "Sources", _sources(found)


def _comparison(found: Found, drawn: Draw) -> str:
    about = (
        f"<p>This page describes {esc(found['label'])}, shaded in the table; bold: the best.</p>\n"
    )
    table_of = beside.comparison(found["comparison"], found["describes"])
    return about + drawn("compare") + table_of


def _notes(estimate: Found) -> str:
    notes = bullets(estimate["notes"])
    said = f"<h3>Assumptions</h3>\n{bullets(estimate['assumptions'])}"
    return (f"<h3>Notes</h3>\n{notes}" if notes else "") + said


def _sources(found: Found) -> str:
    rows = [[row["what"], row["value"], row["source"]] for row in found["sources"]]
    hashes = {
        name: value for name, value in found["estimate"]["setup"]["profile_hashes"].items() if value
    }
    said = ", ".join(f"{name} {value}" for name, value in hashes.items())
    profiles = f'<p class="muted">Profiles by hash: {esc(said)}.</p>\n'
    return table("Where the figures come from", heads("what", "value", "source"), rows) + profiles


def _end(found: Found) -> str:
    return (
        f"<footer><p>{esc(found['source'])}. GiB are binary, 2^30 bytes. The figures of this page, exact, "
        "are in it as JSON: element <code>memcalc-report</code>.</p></footer>\n"
    )


def _data(found: Found) -> str:
    """The object as JSON that cannot end the element it is in."""
    text = json.dumps(found, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
