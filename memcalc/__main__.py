"""The command `memcalc`: find the command asked for, run it, turn errors into one line and a status.

Exit status: 0 done, 2 bad input or unwritable output, 3 does not fit, 1 a bug of ours, 130 stopped.
"""

from __future__ import annotations

import gc
import os
import sys

from memcalc.errors import MemcalcError

_COMPLETION = ("--install-completion", "--show-completion")


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
    if "_MEMCALC_COMPLETE" in os.environ:
        from memcalc.cli.complete import answer

        return answer(os.environ)
    command = words[0] if words else ""
    if command in _COMPLETION:
        from memcalc.cli.completion_setup import set_up

        return set_up(words)
    from memcalc.cli.options import COMMANDS

    if not words or command == "help" or "--help" in words or "-h" in words:
        from memcalc.cli import help as help_pages

        if help_pages.asks_help(words):
            return help_pages.run(words)
    if command in ("--version", "-V"):
        from memcalc import __version__

        print(f"memcalc {__version__}")
        return 0
    if command not in COMMANDS:
        from memcalc.cli.other_names import no_such_command

        raise no_such_command(command)
    from memcalc.cli.run import run_command

    return run_command(command, words[1:])


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
