"""Help: the first screen, a command's page, one option of it. Typer is not imported for it.

    memcalc, memcalc --help, memcalc help          the commands by question
    memcalc help COMMAND, memcalc COMMAND --help   all about a command; -h: the short form
    memcalc help COMMAND --seq                     one option
    memcalc help COMMAND --man | --markdown        the same as a man page, as Markdown

Exit status 0; 2 for a name that is not known. Checked by: cli/test_help.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from memcalc.cli.options import COMMANDS, options_of
from memcalc.cli.pages.page import option_row, page_of
from memcalc.cli.pages.text import full_text, row_text, short_text, start_text
from memcalc.errors import unknown

ASKED: Final = frozenset({"--help", "-h"})


def asks_help(words: Sequence[str]) -> bool:
    """Whether a command line asks for help rather than for a result."""
    before = words[: words.index("--")] if "--" in words else words
    return not words or words[0] == "help" or not ASKED.isdisjoint(before)


def run(words: Sequence[str]) -> int:
    """Print what was asked for. Raises ConfigError for a name that is not known."""
    print(_answer(words), end="")
    return 0


def _answer(words: Sequence[str]) -> str:
    if words and words[0] == "help":
        rest = [word for word in words[1:] if word not in ASKED]
        return _of(rest) if rest else start_text()
    command = words[0] if words else ""
    if not command or command in ASKED:
        return start_text()
    page = page_of(_known(command))
    return full_text(page) if "--help" in words else short_text(page)


def _of(rest: Sequence[str]) -> str:
    """What `memcalc help` says of a command, or of one or more of its options."""
    command = _known(rest[0])
    page = page_of(command)
    if rest[1:] == ["--man"]:
        from memcalc.cli.pages.files import man_page

        return man_page(page)
    if rest[1:] == ["--markdown"]:
        from memcalc.cli.pages.files import markdown_page

        return markdown_page(page)
    if not rest[1:]:
        return full_text(page)
    return "".join(_option(command, word) for word in rest[1:])


def _known(command: str) -> str:
    if command not in COMMANDS:
        from memcalc.cli.other_names import no_such_topic

        raise no_such_topic(command)
    return command


def _option(command: str, word: str) -> str:
    row = option_row(command, word)
    if row is None:
        flags = [option.flag for option in options_of(command)]
        raise unknown(f"help {command}", word, flags, f"memcalc help {command}")
    return row_text(row)
