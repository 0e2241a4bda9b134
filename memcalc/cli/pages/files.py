"""A command's help as files: Markdown for docs/commands/, roff for `man memcalc-COMMAND`.

`benchmarks/command_pages.py` writes the Markdown pages with real outputs of examples; the build of a
wheel writes the man pages (`man_pages.py` beside pyproject.toml). Checked by: cli/test_help.py.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import Final

from memcalc.cli.pages.page import CommandPage, Row, start_rows

#: Lines of prose in Markdown.
_WIDTH: Final = 115


def markdown_page(page: CommandPage, examples: str = "") -> str:
    """The page of docs/commands; `examples` replaces the list of examples, outputs included."""
    lines = [f"# memcalc {page.name}", "", *textwrap.wrap(f"{page.lead} {page.about}", _WIDTH), ""]
    lines += ["```text", page.usage, "```", ""]
    for heading, rows in (("Arguments", page.arguments), ("Kinds", page.kinds)):
        lines += _table(heading, "argument" if heading == "Arguments" else "kind", rows)
    lines += ["## Examples", "", examples.strip() or _listing(page.examples), ""]
    lines += ["## Options", ""]
    for group in page.groups:
        lines += [f"### {group.name}", "", "| option | meaning [default] |", "|---|---|"]
        lines += [f"| `{row.word}` | {_cell(row.said)} |" for row in group.options] + [""]
    for paragraph in page.values:
        lines += [paragraph, ""]
    lines += _table("Exit status", "status", page.status)
    if page.page:
        lines += [f"More: [{page.page}](../{page.page})."]
    else:
        lines += ["All commands: [index](README.md)."]
    return "\n".join(lines) + "\n"


def markdown_index() -> str:
    """The index of the pages: every command by the question it answers."""
    lines = ["# Commands", "", "Written from the option table by `python -m benchmarks.command_pages`; "
             "`memcalc help COMMAND` prints\nthe same, `man memcalc-COMMAND` too where the wheel is "
             "installed.", ""]  # fmt: skip
    for group in start_rows():
        lines += [f"## {group.name}", "", "| command | |", "|---|---|"]
        lines += [f"| [{row.word}]({row.word}.md) | {row.said} |" for row in group.options] + [""]
    return "\n".join(lines[:-1]) + "\n"


def _table(heading: str, name: str, rows: Iterable[Row]) -> list[str]:
    body = [f"| `{row.word}` | {_cell(row.said)} |" for row in rows]
    return [f"## {heading}", "", f"| {name} | |", "|---|---|", *body, ""] if body else []


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")


def _listing(examples: Iterable[str]) -> str:
    return "\n".join(["```text", *(f"$ {line}" for line in examples), "```"])


def man_page(page: CommandPage) -> str:
    """The page as roff, section 1."""
    from memcalc import __version__

    name = f"memcalc-{page.name}"
    lines = [f'.TH {name.upper()} 1 "" "memcalc {__version__}" "memcalc"', ".SH NAME"]
    lines += [f"{_roff(name)} \\- {_roff(page.summary)}", ".SH SYNOPSIS", f".B {_roff(page.usage)}"]
    lines += [".SH DESCRIPTION", _roff(page.about)]
    for heading, rows in (("ARGUMENTS", page.arguments), ("KINDS", page.kinds)):
        lines += _items(heading, rows)
    lines += [".SH OPTIONS"]
    for group in page.groups:
        lines += [f".SS {_roff(group.name)}", *_paragraphs(group.options)]
    if page.values:
        lines += [".SH VALUES", *(line for text in page.values for line in (".PP", _roff(text)))]
    lines += [*_items("EXIT STATUS", page.status), *_items("ENVIRONMENT", page.environment)]
    lines += [".SH EXAMPLES", ".nf", *(_roff(line) for line in page.examples), ".fi"]
    return "\n".join(lines) + "\n"


def man_start() -> str:
    """The page of `memcalc` itself: the commands by question."""
    from memcalc import __version__

    lines = [f'.TH MEMCALC 1 "" "memcalc {__version__}" "memcalc"', ".SH NAME",
             "memcalc \\- GPU memory and speed of language models, estimated", ".SH SYNOPSIS",
             ".B memcalc COMMAND ... [OPTIONS]", ".SH COMMANDS"]  # fmt: skip
    for group in start_rows():
        lines += [f".SS {_roff(group.name)}"]
        lines += _paragraphs([Row(f"memcalc-{row.word}(1)", row.said) for row in group.options])
    return "\n".join(lines) + "\n"


def _items(heading: str, rows: Iterable[Row]) -> list[str]:
    body = _paragraphs(rows)
    return [f".SH {heading}", *body] if body else []


def _paragraphs(rows: Iterable[Row]) -> list[str]:
    return [line for row in rows for line in (".TP", f".B {_roff(row.word)}", _roff(row.said))]


def _roff(text: str) -> str:
    """Text with what roff reads as its own escaped: backslashes, hyphens, a line's first dot or quote."""
    found = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{found}" if found[:1] in (".", "'") else found
