"""Help for a terminal: 80 columns or fewer, headings bold where a person looks, plain in a pipe.

`full_text` is what --help prints, `short_text` what -h does, `start_text` the first screen.
Checked by: cli/test_help.py.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator
from typing import Final

from memcalc.cli.pages.page import CommandPage, Group, Row, start_rows

#: No line is longer, however wide the terminal: longer ones read badly.
WIDTH: Final = 80
#: Where what is said of a word begins, and the longest word beside which it still begins there.
_COLUMN: Final = 30
_INDENT: Final = 2
_TOP_EXAMPLES: Final = (
    "memcalc estimate llama-3.1-8b --gpu h100",
    "memcalc infer llama-3.1-8b --gpu 4090 --weights gguf:Q4_K_M --engine llama.cpp",
    "memcalc search llama-3.1-70b --cluster dgx-h100 --gpus 64 --global-batch 512",
)


def start_text() -> str:
    """The first screen: the commands by the question they answer."""
    lines = [
        *_wrapped("memcalc: the GPU memory and the speed of training, fine-tuning and serving a language "
                  "model, estimated from one exact description of it. No GPU is needed.", 0),
        "", _heading("Usage"), "  memcalc COMMAND ... [OPTIONS]",
    ]  # fmt: skip
    for group in start_rows():
        lines += ["", _heading(group.name), *_rows(group.options, 14)]
    lines += [
        "",
        _heading("More"),
        *_rows((
            Row("COMMAND -h", "the options of a command by name, with examples"),
            Row("help COMMAND", "all about a command; with an option's name, that option"),
            Row("--version", "the version"),
            Row("--install-completion", "complete commands, options and names in this shell: bash, "
                "zsh, fish, PowerShell; --show-completion prints the script"),
        ), 24),
        "",
        _heading("Examples"),
        *_examples(_TOP_EXAMPLES),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def full_text(page: CommandPage) -> str:
    """Everything about a command."""
    lines = [*_head(page), "", *_wrapped(page.about, 0)]
    for heading, rows in (("Arguments", page.arguments), ("Kinds", page.kinds), *page.groups):
        if rows:
            lines += ["", _heading(heading), *_rows(rows)]
    if page.values:
        lines += ["", _heading("Values")]
        for paragraph in page.values:
            lines += _wrapped(paragraph, _INDENT)
    lines += ["", _heading("Exit status"), *_rows(page.status, 8)]
    lines += ["", _heading("Environment"), *_rows(page.environment)]
    lines += ["", _heading("Examples"), *_examples(page.examples)]
    if page.page:
        lines += ["", f"More: docs/{page.page}"]
    return "\n".join(lines) + "\n"


def short_text(page: CommandPage) -> str:
    """Usage, the options by name alone, and the examples."""
    lines = [*_head(page)]
    if page.arguments:
        lines += ["", *_rows(page.arguments)]
    for group in page.groups:
        words = "  ".join(_unbroken(row.word) for row in group.options)
        filled = textwrap.wrap(words, _width() - 4, break_on_hyphens=False, break_long_words=False)
        lines += ["", _heading(group.name), *(f"  {_mended(line)}" for line in filled)]
    lines += ["", _heading("Examples"), *_examples(page.examples)]
    lines += ["", f"What they mean: memcalc {page.name} --help; one of them: memcalc help "
              f"{page.name} {_first_option(page.groups)}"]  # fmt: skip
    return "\n".join(lines[:-1] + _wrapped(lines[-1], 0)) + "\n"


def row_text(row: Row) -> str:
    """One option alone."""
    return "\n".join(_rows((row,))) + "\n"


def _first_option(groups: tuple[Group, ...]) -> str:
    words = [word for word in groups[0].options[0].word.split() if word.startswith("--")]
    return words[0].rstrip(",")


def _head(page: CommandPage) -> list[str]:
    return [_heading("Usage"), f"  {page.usage}", "", *_wrapped(page.lead, 0)]


def _width() -> int:
    return max(40, min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns))


def _wrapped(text: str, indent: int) -> list[str]:
    blank = " " * indent
    return textwrap.wrap(text, _width(), initial_indent=blank, subsequent_indent=blank,
                         break_on_hyphens=False)  # fmt: skip


def _rows(rows: Iterable[Row], column: int = _COLUMN) -> Iterator[str]:
    """Words on the left, what they mean on the right; a long word has a line of its own."""
    column = min(column, _width() // 2)
    for row in rows:
        said = textwrap.wrap(row.said, _width() - column, break_on_hyphens=False)
        word = " " * _INDENT + row.word
        if len(word) + 2 > column:
            yield word
        else:
            first, *said = said
            yield f"{word:<{column}}{first}"
        yield from (" " * column + line for line in said)


def _examples(lines: Iterable[str]) -> Iterator[str]:
    """Commands as they are typed; one that is too long goes on behind a backslash."""
    for line in lines:
        room = _width() - _INDENT - 2
        whole = re.sub(r"'[^']*'", lambda found: _unbroken(found[0]), line)
        parts = textwrap.wrap(whole, room, subsequent_indent="    ", break_on_hyphens=False,
                              break_long_words=False)  # fmt: skip
        yield from (f"  {_mended(part)} \\" for part in parts[:-1])
        yield f"  {_mended(parts[-1])}"


def _unbroken(word: str) -> str:
    """No line ends inside it."""
    return word.replace(" ", "\0")


def _mended(line: str) -> str:
    return line.replace("\0", " ")


def _heading(text: str) -> str:
    """Bold for a person's terminal."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return text if plain or not sys.stdout.isatty() else f"\x1b[1m{text}\x1b[0m"
