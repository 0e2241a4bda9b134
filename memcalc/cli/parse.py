"""argv to Arguments, read by typer from the option table; its errors become one line each.

A line names the option and the rule, and the nearest option where a name is not known.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

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
    """Read what follows the command's name. Raises ConfigError; checked by cli/test_options.py."""
    from memcalc.cli.app import command_app

    program = command_app(command, frozenset(word.partition("=")[0] for word in argv))
    try:
        found = program(args=argv, prog_name=f"memcalc {command}", standalone_mode=False)
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        raise _usage_error(command, error) from error
    assert isinstance(found, Arguments)
    return found


def _usage_error(command: str, error: Any) -> ConfigError:
    """What typer says of a command line, in one line of ours."""
    kind, flag = type(error).__name__, str(getattr(error, "option_name", "") or "")
    if kind == "NoSuchOption":
        return _no_such_option(command, flag)
    if kind == "BadOptionUsage" and flag:
        option = BY_FLAG.get(flag)
        if option is not None and option.takes_value:
            return ConfigError(f"{flag}: got no value; rule: {flag} {option.metavar}")
        return ConfigError(f"{flag}: got a value; rule: takes no value")
    return ConfigError(f"{command}: {' '.join(str(error.format_message()).split())}")


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
    if isinstance(value, str) and value.partition("=")[0] in BY_FLAG:
        raise ConfigError(f"{option.flag}: got no value; rule: {option.flag} {option.metavar}")
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


def _no_such_option(command: str, flag: str) -> ConfigError:
    option = BY_FLAG.get(flag)
    taken = [known.flag for known in options_of(command) if not known.later]
    if option is not None:
        said = "not in this version" if option.later else f"not an option of {command}"
        return ConfigError(f"{flag}: {said}; valid: {', '.join(_few(taken))}")
    close = nearest(flag, taken)
    rule = f"nearest: {', '.join(close)}" if close else f"see `memcalc {command} --help`"
    return ConfigError(f"option: got {flag!r}, not known; {rule}")


def _few(names: list[str]) -> list[str]:
    return names if len(names) <= 8 else [*names[:8], "..."]
