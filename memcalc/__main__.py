"""The command `memcalc`: find the command asked for, run it, turn errors into one line and a status.

Exit status: 0 done, 2 bad input or unwritable output, 3 does not fit, 1 a bug of ours, 130 stopped.
"""

from __future__ import annotations

import gc
import os
import sys

from memcalc.errors import MemcalcError

_HELP = frozenset({"--help", "-h", "--install-completion", "--show-completion"})


def main(argv: list[str] | None = None) -> int:
    """Run one command line and return its exit status. Checked by: cli/test_errors.py."""
    words = sys.argv[1:] if argv is None else list(argv)
    if argv is None:
        gc.disable()  # a short life: what is dropped late costs less than looking for it
    debug = "--debug" in words
    try:
        status = _dispatch(words)
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_stdout()
        return 0
    except MemcalcError as error:
        return _failed(error, str(error), 2, debug)
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        detail = error.strerror or str(error)
        place = f" ({error.filename})" if error.filename else ""
        _drop_stdout()
        return _failed(error, f"output: {detail}{place}", 2, debug)
    except ModuleNotFoundError as error:
        if (error.name or "memcalc").startswith("memcalc"):
            return _failed(error, f"internal: {error}; --debug shows where", 1, debug)
        missing = f"{error.name} is not installed; rule: pip install {error.name}"
        return _failed(error, missing, 2, debug)
    except MemoryError as error:
        return _failed(error, "out of host memory for this input", 1, debug)
    except Exception as error:
        said = f"internal: {type(error).__name__}: {error}; --debug shows where"
        return _failed(error, said, 1, debug)
    return status


def _dispatch(words: list[str]) -> int:
    from memcalc.cli.options import COMMANDS

    command = words[0] if words else ""
    if "_MEMCALC_COMPLETE" in os.environ or not words or _asks_help(words):
        return _typer(words)
    if command in ("--version", "-V"):
        from memcalc import __version__

        print(f"memcalc {__version__}")
        return 0
    if command not in COMMANDS:
        from memcalc.errors import unknown

        what = "option" if command.startswith("-") else "command"
        valid = ["--help", "--version"] if what == "option" else [*COMMANDS]
        raise unknown(what, command, valid)
    from memcalc.cli.run import run_command

    return run_command(command, words[1:])


def _asks_help(words: list[str]) -> bool:
    before = words[: words.index("--")] if "--" in words else words
    return not _HELP.isdisjoint(before)


def _typer(words: list[str]) -> int:
    """Help and shell completion."""
    from memcalc.cli.app import run_app

    return run_app(words)


def _failed(error: BaseException, text: str, status: int, debug: bool) -> int:
    """Say what went wrong in one line."""
    if debug:
        import traceback

        traceback.print_exception(error, file=sys.stderr)
    line = " ".join(text.split())
    printable = "".join(c if c.isprintable() else "?" for c in line)
    short = printable if len(printable) <= 1000 else printable[:997] + "..."
    if os.environ.get("RANK", "0") != "0":
        from memcalc.cli.one_voice import named

        short = named(short)
    print(f"error: {short}".encode("utf-8", "replace").decode("utf-8"), file=sys.stderr)
    return status


def _drop_stdout() -> None:
    """Nobody reads any more: let the interpreter's last flush go nowhere."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


if __name__ == "__main__":
    sys.exit(main())
