"""The typer applications made from the option table: one command's reader, and all for help.

`parse_arguments` reads one command's arguments (`command_app`), so only the options of the command
asked for are built; what typer says of bad ones becomes one line, with the nearest option.
`build_app` has every command, for help pages and shell completion.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterable
from typing import Annotated, Any

if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
    os.environ.setdefault("_TYPER_FORCE_DISABLE_TERMINAL", "1")

import typer

from memcalc.cli.chart_options import KINDS
from memcalc.cli.examples import EXAMPLES
from memcalc.cli.options import BY_FLAG, COMMANDS, PANELS, Option, options_of
from memcalc.cli.parse import Arguments, Value, put
from memcalc.errors import ConfigError, nearest
from memcalc.inputs.training import RECOMPUTE

_LISTS = "Lists: 1,2,4; ranges: 1..8, 1..8:2 (steps of 2), 1k..16k*2 (doubling); all are crossed."
_LAST = {"compare": _LISTS, "chart": _LISTS}
_TOP_EXAMPLES = ("memcalc estimate llama-3.1-8b --gpu h100", "memcalc estimate --help")


def run_app(words: list[str]) -> int:
    """Show help or complete; returns the exit status."""
    app = build_app()
    try:
        status = app(args=words or ["--help"], prog_name="memcalc", standalone_mode=False)
    except SystemExit as stop:
        return int(stop.code or 0) if not isinstance(stop.code, str) else 1
    except Exception as error:
        message = getattr(error, "format_message", None)
        if message is None:
            if type(error).__name__ in ("Exit", "Abort"):
                return int(getattr(error, "exit_code", 130))
            raise
        raise ConfigError(message()) from error
    return status if isinstance(status, int) else 0


def build_app() -> typer.Typer:
    """All commands with their help."""
    app = typer.Typer(
        name="memcalc", no_args_is_help=True, rich_markup_mode="rich", add_completion=True,
        pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]},
    )  # fmt: skip
    app.callback(
        help="GPU memory of language models: what a training step needs, exactly, and why.",
        epilog=_epilog(_TOP_EXAMPLES),
    )(_top)
    for command, (_, description) in COMMANDS.items():
        epilog = _epilog(EXAMPLES[command], _LAST.get(command, ""))
        app.command(command, help=description, epilog=epilog)(
            _callback(command, _positionals(command), options_of(command))
        )
    return app


def _top(version: bool = typer.Option(False, "--version", help="Show the version.")) -> None:
    pass


def _epilog(examples: tuple[str, ...], last: str = "") -> str:
    shown = "\n\n".join(f"  {example}" for example in examples)
    return f"Examples:\n\n{shown}" + (f"\n\n{last}" if last else "")


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
        return _no_such_option(command, flag)
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


def _positionals(command: str) -> list[tuple[str, Any, Any]]:
    shown = {
        "MODEL": "Profile name, Hub id, config.json, its directory, or a .safetensors file",
        "[MODEL]": "The same as of estimate",
        "[KIND]": "models, gpus, stacks, clusters, weights, engines or calibrations",
        "KIND": ", ".join(KINDS),
        "WHAT": "micro-batch, seq, gpus or layers of training; batch or context of serving",
        "NAME": "A name of `memcalc list`",
        "FILE": "DeepSpeed JSON, accelerate YAML, torchtitan TOML or flags, Megatron-LM arguments",
        "A": "Run file, JSON result, or a quoted command line",
        "B": "The same, to compare with A",
    }
    found = []
    for word in COMMANDS[command][0].split():
        name = word.strip("[]")
        complete = _COMPLETE.get(word, _COMPLETE.get(name))
        info = typer.Argument(metavar=name, help=shown[word], autocompletion=complete)
        needed = not word.startswith("[") and name != "NAME"
        kind = Annotated[str, info] if needed else Annotated[str | None, info]
        found.append((f"{name.lower()}_word", kind, inspect.Parameter.empty if needed else None))
    return found


def _parameter(option: Option) -> tuple[str, Any, Any]:
    said = f": {', '.join(option.choices)}" if option.choices else ""
    text = option.help + said + (f" [dim]\\[{option.default}][/dim]" if option.default else "")
    common: dict[str, Any] = {
        "help": text, "rich_help_panel": option.panel, "show_default": False,
    }  # fmt: skip
    flags = _flags(option)
    name = option.name.replace("-", "_")
    if option.kind == "flag":
        return name, Annotated[bool, typer.Option(*flags, **common)], False
    common |= {"metavar": option.metavar, "autocompletion": _completer(option)}
    if option.kind == "many":
        return name, Annotated[list[str] | None, typer.Option(*flags, **common)], None
    return name, Annotated[str | None, typer.Option(*flags, **common)], None


def _completer(option: Option) -> Callable[..., list[str]] | None:
    if option.choices:
        return lambda incomplete="": [c for c in option.choices if c.startswith(incomplete)]
    return _COMPLETE.get(option.name)


def _from_profiles(*kinds: str) -> Callable[..., list[str]]:
    def complete(incomplete: str = "") -> list[str]:
        from memcalc.inputs.profiles import profile_names

        names = [name for kind in kinds for name in profile_names(kind)]
        return [name for name in names if name.startswith(incomplete.lower())]

    return complete


_COMPLETE: dict[str, Callable[..., list[str]]] = {
    "MODEL": _from_profiles("models"),
    "NAME": _from_profiles("models", "gpus", "stacks", "clusters", "engines"),
    "KIND": lambda incomplete="": [kind for kind in KINDS if kind.startswith(incomplete)],
    "[KIND]": lambda incomplete="": [
        kind for kind in (
            "models", "gpus", "stacks", "clusters", "weights", "engines", "calibrations",
        ) if kind.startswith(incomplete)
    ],
    "gpu": _from_profiles("gpus"),
    "stack": _from_profiles("stacks"),
    "recompute": lambda incomplete="": [
        word for word in RECOMPUTE if word.startswith(incomplete)
    ],
}  # fmt: skip


def _no_such_option(command: str, flag: str) -> ConfigError:
    taken = [known.flag for known in options_of(command)]
    if flag in BY_FLAG:
        return ConfigError(f"{flag}: not an option of {command}; valid: {', '.join(_few(taken))}")
    close = nearest(flag, taken)
    rule = f"nearest: {', '.join(close)}" if close else f"see `memcalc {command} --help`"
    return ConfigError(f"option: got {flag!r}, not known; {rule}")


def _few(names: list[str]) -> list[str]:
    return names if len(names) <= 8 else [*names[:8], "..."]
