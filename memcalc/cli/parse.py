"""Arguments: what a command was given, as text by option name, and the checks on it.

`cli/app.py` reads the command line into it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from memcalc.cli.option import SEVERAL
from memcalc.cli.options import BY_FLAG, POSITIONALS, Option
from memcalc.errors import ConfigError, spelled, unknown
from memcalc.inputs.peft import METHODS
from memcalc.inputs.stacks import stack_names
from memcalc.inputs.training_names import RECOMPUTE

#: Kinds of options with a closed list of words before a number, as full:4.
_WORDS: Final = {"recompute": RECOMPUTE, "peft": METHODS}
Value = str | bool | list[str]


@dataclass(slots=True)
class Arguments:
    """A command, its positional arguments, and the options given, by name, as text."""

    command: str
    positionals: list[str]
    options: dict[str, Value] = field(default_factory=dict)

    def text(self, name: str) -> str | None:
        """The text of an option, None where it was not given."""
        value = self.options.get(name)
        return value if isinstance(value, str) else None

    def has(self, name: str) -> bool:
        """Whether a flag was given."""
        return self.options.get(name) is True

    @property
    def wants_json(self) -> bool:
        return self.has("json")


def check_positionals(arguments: Arguments, given_elsewhere: int = 0) -> None:
    """Raise ConfigError unless there are as many positional arguments as the command takes."""
    from memcalc.cli.options import COMMANDS

    fewest, most = POSITIONALS[arguments.command]
    count = len(arguments.positionals)
    usage = f"memcalc {arguments.command} {COMMANDS[arguments.command][0]}".rstrip()
    if count > most:
        raise ConfigError(
            f"argument: got {arguments.positionals[most]!r} too many; rule: {usage}{_as_one(arguments)}"
        )
    if count + given_elsewhere < fewest:
        raise ConfigError(f"argument: got {count or 'none'}; rule: {usage}")


def _as_one(arguments: Arguments) -> str:
    """How several models are one argument, for commands that take several."""
    words = arguments.positionals
    if arguments.command not in SEVERAL or any("," in word or " " in word for word in words):
        return ""
    first = 1 if arguments.command == "chart" else 0
    return f"; nearest valid: {','.join(words[first:])}, commas between models"


def put(options: dict[str, Value], option: Option, value: str | bool) -> None:
    """Enter one value; repeated options collect, others keep the last.

    Words of a closed list may be spelt as elsewhere (`AdamW`, `LoRA`); they are kept as the list has them.
    """
    is_flag = isinstance(value, str) and value.partition("=")[0] in BY_FLAG
    if is_flag and option.name != "setup":  # --setup --fsdp is a setup of one option
        raise ConfigError(f"{option.flag}: got no value; rule: {option.flag} {option.metavar}")
    if option.kind == "many":
        known = options.setdefault(option.name, [])
        assert isinstance(known, list)
        known.append(str(value))
    else:
        options[option.name] = _as_listed(option, value) if isinstance(value, str) else value


def _as_listed(option: Option, text: str) -> str:
    """The text with each of its words, parted by commas, as the option's closed list has it.

    Raises ConfigError for a word that is not in it: every option is checked, whether or not it is read.
    """
    words = option.choices or _WORDS.get(option.kind, ())
    if option.name == "stack":
        words = stack_names()
    if not words or ("," not in text and text.partition(":")[0] in words):
        return text
    from memcalc.cli.other_names import check_value

    listed = []
    for word, colon, rest in (part.strip().partition(":") for part in text.split(",")):
        known = spelled(word, words)
        if known and known not in words:
            check_value(option.name, known)
            if option.choices and option.kind != "stage":  # stages may be a range
                raise unknown(option.flag, known, option.choices)
        listed.append(f"{known}{colon}{rest}")
    return ",".join(listed)
