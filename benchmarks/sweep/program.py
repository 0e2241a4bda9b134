"""One command function as a program: options by typer, errors of the user in one line with status 2.

Checked by: tests/harness/test_gpu_sweep.py, tests/harness/test_harness_mfu.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from memcalc.errors import MemcalcError


def run_command(command: Callable[..., Any], words: list[str]) -> int:
    """Run `command` with the words of a command line; the status the process should end with."""
    import typer
    from typer.main import get_command

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    try:
        return int(get_command(app).main(words, prog_name="benchmark", standalone_mode=False) or 0)
    except MemcalcError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; what was measured is kept", file=sys.stderr)
        return 130
    except Exception as error:
        shown = getattr(error, "format_message", None)  # what typer says of wrong options
        if shown is None:
            raise
        print(f"error: {shown()}", file=sys.stderr)
        return 2
