"""One command's reader, a typer application made from the option table.

`parse_arguments` reads one command's arguments (`command_app`), so only the options of the command
asked for are built; what typer says of bad ones becomes one line, with the nearest option.
Help is `cli/help.py`, shell completion `cli/complete.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import typer

from memcalc.cli.options import BY_FLAG, PANELS, Option, options_of
from memcalc.cli.parse import Arguments, Value, put
from memcalc.errors import ConfigError


def parse_arguments(command: str, argv: list[str]) -> Arguments:
    """Read what follows the command's name. Raises ConfigError; checked by cli/test_options.py."""
    if command == "import":  # arguments of another tool in quotes are its FILE, not options of ours
        argv = [f" {word}" if word.startswith("--") and " " in word else word for word in argv]
    program = command_app(command)
    try:
        found = program(args=argv, prog_name=f"memcalc {command}", standalone_mode=False)
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        raise _usage_error(command, error) from error
    assert isinstance(found, Arguments)
    found.options = _as_given(found.options, argv)
    return found


def _as_given(options: dict[str, Value], argv: list[str]) -> dict[str, Value]:
    """The options in the order of the command line, which is the order of a comparison's columns."""
    words = [BY_FLAG.get(word.partition("=")[0]) for word in argv]
    order = {option.name: -at for at, option in enumerate(reversed(words)) if option is not None}
    return dict(sorted(options.items(), key=lambda item: order.get(item[0], 0)))


def _usage_error(command: str, error: Any) -> ConfigError:
    """What typer says of a command line, in one line of ours."""
    kind, flag = type(error).__name__, str(getattr(error, "option_name", "") or "")
    if kind == "NoSuchOption":
        from memcalc.cli.other_names import no_such_option

        return no_such_option(command, flag)
    if kind == "BadOptionUsage" and flag:
        option = BY_FLAG.get(flag)
        if option is not None and option.takes_value:
            return ConfigError(f"{flag}: got no value; rule: {flag} {option.metavar}")
        return ConfigError(f"{flag}: got a value; rule: takes no value")
    return ConfigError(f"{command}: {' '.join(str(error.format_message()).split())}")


def command_app(command: str) -> typer.Typer:
    """A typer program of one command; called, it returns the command's Arguments."""
    app = typer.Typer(
        name=command, rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False
    )
    words = typer.Argument(metavar="")
    positionals = [("words", Annotated[list[str] | None, words], None)]
    app.command(command)(_callback(command, positionals, options_of(command)))
    return app


def _flags(option: Option) -> tuple[str, ...]:
    return (option.flag, *option.flags)


def _callback(
    command: str, positionals: list[tuple[str, Any, Any]], taken: Iterable[Option]
) -> Callable[..., Arguments]:
    """A function whose signature is the given options; it returns what was given."""
    options = sorted(taken, key=lambda option: PANELS.index(option.panel))
    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=default)
        for name, kind, default in [*positionals, *map(_parameter, options)]
    ]

    def callback(**values: Any) -> Arguments:
        arguments = Arguments(command, list(values.get("words") or ()))
        for option in options:
            value = values[option.name.replace("-", "_")]
            for one in value or () if option.kind == "many" else (value,):
                if one is not None and one is not False:
                    put(arguments.options, option, one)
        return arguments

    callback.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    callback.__annotations__ = {p.name: p.annotation for p in parameters}
    return callback


def _parameter(option: Option) -> tuple[str, Any, Any]:
    flags = _flags(option)
    name = option.name.replace("-", "_")
    if option.kind == "flag":
        return name, Annotated[bool, typer.Option(*flags)], False
    if option.kind == "many":
        return name, Annotated[list[str] | None, typer.Option(*flags, metavar=option.metavar)], None
    return name, Annotated[str | None, typer.Option(*flags, metavar=option.metavar)], None
