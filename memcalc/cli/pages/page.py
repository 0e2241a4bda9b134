"""One command's help as plain values, made from the option table: what every form of it is written from.

`text.py` writes it for a terminal, `files.py` as Markdown (docs/commands/) and as a man page, so none
of the three can say what another does not. Checked by: cli/test_help.py.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from memcalc.cli.chart_options import KINDS
from memcalc.cli.examples import EXAMPLES
from memcalc.cli.options import BY_NAME, COMMANDS, PANELS, Option, options_of
from memcalc.cli.pages.words import (
    ABOUT,
    ARGUMENTS,
    COMMON_STATUS,
    ENVIRONMENT,
    GROUPS,
    LISTS,
    SAID,
    VALUES,
)
from memcalc.cli.peft_options import PEFT_OPTIONS
from memcalc.cli.phase_options import PHASE_OPTIONS

#: Groups of options that the help shows apart though they share a panel, after the panel they follow.
_APART: Final = {
    **{option.name: ("Fine-tuning", "Training") for option in PEFT_OPTIONS},
    **{option.name: ("Phases", "Measuring") for option in PHASE_OPTIONS},
}
#: Commands whose options take lists.
_LISTED: Final = ("compare", "chart", "report")
#: A word of prose, as a choice may be written: 2.5d, full:N, bf16-mixed.
_WORD: Final = re.compile(r"[\w.:+-]*\w")


class Row(NamedTuple):
    """A word, as it is typed, and what it means."""

    word: str
    said: str


class Group(NamedTuple):
    """Options that belong together."""

    name: str
    options: tuple[Row, ...]


class CommandPage(NamedTuple):
    """The help of one command."""

    name: str
    usage: str
    summary: str
    about: str
    arguments: tuple[Row, ...]
    kinds: tuple[Row, ...]  # of chart
    groups: tuple[Group, ...]
    values: tuple[str, ...]
    status: tuple[Row, ...]
    environment: tuple[Row, ...]
    examples: tuple[str, ...]
    page: str

    @property
    def lead(self) -> str:
        """The summary as a sentence."""
        return self.summary if self.summary.endswith(".") else f"{self.summary}."


def page_of(command: str) -> CommandPage:
    """The help of a command; the name must be one of `COMMANDS`."""
    words, summary = COMMANDS[command]
    about = ABOUT[command]
    takes_setup = any(option.panel == "Training" for option in options_of(command))
    return CommandPage(
        command,
        f"memcalc {command} {words} [OPTIONS]".replace("  ", " "),
        summary,
        about.text,
        tuple(Row(word, ARGUMENTS[word]) for word in words.split()),
        tuple(Row(kind, said) for kind, said in KINDS.items()) if command == "chart" else (),
        _groups(command),
        (VALUES if takes_setup else ()) + (LISTS if command in _LISTED else ()),
        _status(about.status),
        tuple(Row(name, said) for name, said in ENVIRONMENT),
        EXAMPLES[command],
        about.page,
    )


def _groups(command: str) -> tuple[Group, ...]:
    """The options of a command by group, in the order of the panels."""
    found: dict[tuple[int, str], list[Row]] = {}
    for option in options_of(command):
        name, after = _APART.get(option.name, (option.panel, option.panel))
        if option.name == "weights" and command == "infer":
            name = after = "Serving"
        place = (2 * PANELS.index(after) + (name != after), name)
        found.setdefault(place, []).append(Row(spelling(option), said_of(option, command)))
    found.setdefault((2 * PANELS.index("Output"), "Output"), []).append(
        Row("-h, --help", "This help; -h is the short form")
    )
    return tuple(
        Group(name, tuple(found[place])) for place in sorted(found) for name in (place[1],)
    )


def spelling(option: Option) -> str:
    """How an option is typed: `-o, --out FILE`."""
    flags = ", ".join((*option.flags, option.flag))
    return f"{flags} {option.metavar}" if option.takes_value else flags


def said_of(option: Option, command: str) -> str:
    """What an option means, the values it takes unless the text names them all, and its default."""
    said = SAID.get((option.name, command), option.help)
    missing = set(option.choices).difference(_WORD.findall(said))
    choices = f": {', '.join(option.choices)}" if missing else ""
    default = f" [{option.default}]" if option.default else ""
    return f"{said}{choices}{default}"


def _status(own: tuple[tuple[int, str], ...]) -> tuple[Row, ...]:
    """Exit statuses in order; a command's own meaning stands before the common one."""
    rows = [*own, *COMMON_STATUS]
    return tuple(Row(str(code), said) for code, said in sorted(rows, key=lambda row: row[0]))


def start_rows() -> tuple[Group, ...]:
    """The commands by the question they answer, for the first screen."""
    return tuple(
        Group(question, tuple(Row(name, COMMANDS[name][1]) for name in names))
        for question, names in GROUPS
    )


def option_row(command: str, name: str) -> Row | None:
    """One option of a command, for `memcalc help COMMAND OPTION`; None where it has none of the name."""
    option = BY_NAME.get(name.lstrip("-"))
    if option is None or command not in option.commands:
        return None
    return Row(spelling(option), said_of(option, command))
