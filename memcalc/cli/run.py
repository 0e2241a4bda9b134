"""Run one command: import its module, and no other's."""

from __future__ import annotations

from importlib import import_module

from memcalc.cli.app import parse_arguments

#: Command -> module with `run(arguments) -> int`.
_MODULES = {
    "estimate": "memcalc.cli.estimate",
    "infer": "memcalc.cli.infer",
    "explain": "memcalc.cli.explain",
    "compare": "memcalc.cli.compare",
    "chart": "memcalc.cli.chart",
    "report": "memcalc.cli.report",
    "measure": "memcalc.cli.measure",
    "verify": "memcalc.cli.verify",
    "calibrate": "memcalc.cli.calibrate",
    "train-time": "memcalc.cli.train_time",
    "mfu": "memcalc.cli.mfu",
    "accuracy": "memcalc.cli.accuracy",
    "list": "memcalc.cli.listing",
    "show": "memcalc.cli.show",
    "doctor": "memcalc.cli.doctor",
    "diff": "memcalc.cli.diff",
}


def run_command(command: str, words: list[str]) -> int:
    """Parse what follows the command and run it; returns the exit status.

    Raises MemcalcError for bad input, which `__main__` prints in one line.
    Checked by: cli/test_errors.py.
    """
    arguments = parse_arguments(command, words)
    status: int = import_module(_MODULES[command]).run(arguments)
    return status
