"""argv to values: a plain reader of the option table, so that a command starts without a framework.

The help and the completion are typer's, made from the same table (cli/app.py). Every error is one
line naming the option, and the nearest one where a name is not known.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from memcalc.cli.options import BY_FLAG, POSITIONALS, Option, options_of
from memcalc.errors import ConfigError, NotInThisVersionError, nearest

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


def parse_arguments(command: str, argv: list[str]) -> Arguments:
    """Read what follows the command's name. Raises ConfigError; checked by cli/test_parse.py."""
    arguments = Arguments(command, [])
    position = 0
    only_positionals = False
    while position < len(argv):
        word = argv[position]
        position += 1
        if only_positionals or word == "-" or not word.startswith("-"):
            arguments.positionals.append(word)
        elif word == "--":
            only_positionals = True
        else:
            flag, equals, value = word.partition("=")
            option = _option(command, flag)
            if not option.takes_value:
                if equals:
                    raise ConfigError(f"{flag}: got {value!r}; rule: takes no value")
                put(arguments.options, option, True)
                continue
            if not equals:
                if position >= len(argv) or _is_flag(argv[position]):
                    raise ConfigError(f"{flag}: got no value; rule: {flag} {option.metavar}")
                value = argv[position]
                position += 1
            put(arguments.options, option, value)
    return arguments


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
    """Enter one value; repeated options collect, others keep the last. Later ones are refused."""
    if option.later:
        refuse(option, value)
    elif option.kind == "many":
        known = options.setdefault(option.name, [])
        assert isinstance(known, list)
        known.append(str(value))
    else:
        options[option.name] = value


def refuse(option: Option, value: str | bool) -> None:
    """Raise for an option of a later version, unless its value changes nothing."""
    said = "true" if value is True else str(value)
    if said not in option.harmless:
        got = "" if value is True else f"got {said}; "
        raise NotInThisVersionError(f"{option.flag}: {got}not in this version")


def _is_flag(word: str) -> bool:
    return word.partition("=")[0] in BY_FLAG


def _option(command: str, flag: str) -> Option:
    option = BY_FLAG.get(flag)
    if option is not None and command in option.commands:
        return option
    taken = [known.flag for known in options_of(command) if not known.later]
    if option is not None:
        said = "not in this version" if option.later else f"not an option of {command}"
        raise ConfigError(f"{flag}: {said}; valid: {', '.join(_few(taken))}")
    close = nearest(flag, taken)
    rule = f"nearest: {', '.join(close)}" if close else f"see `memcalc {command} --help`"
    raise ConfigError(f"option: got {flag!r}, not known; {rule}")


def _few(names: list[str]) -> list[str]:
    return names if len(names) <= 8 else [*names[:8], "..."]
