"""Arguments: what a command was given, as text by option name, and the checks on it.

`cli/app.py` reads the command line into it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from memcalc.cli.options import BY_FLAG, POSITIONALS, Option
from memcalc.errors import ConfigError

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
        raise ConfigError(f"argument: got {arguments.positionals[most]!r} too many; rule: {usage}")
    if count + given_elsewhere < fewest:
        raise ConfigError(f"argument: got {count or 'none'}; rule: {usage}")


def put(options: dict[str, Value], option: Option, value: str | bool) -> None:
    """Enter one value; repeated options collect, others keep the last."""
    is_flag = isinstance(value, str) and value.partition("=")[0] in BY_FLAG
    if is_flag and option.name != "setup":  # --setup --fsdp is a setup of one option
        raise ConfigError(f"{option.flag}: got no value; rule: {option.flag} {option.metavar}")
    if option.kind == "many":
        known = options.setdefault(option.name, [])
        assert isinstance(known, list)
        known.append(str(value))
    else:
        options[option.name] = value
