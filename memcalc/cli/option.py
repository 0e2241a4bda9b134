"""One row of the option table, and which commands share rows.

The rows themselves are in `cli/options.py` and `cli/run_options.py`; kinds say how text is read
(`cli/request.py: typed`), panels are the help's groups and a run file's tables.
"""

from __future__ import annotations

from typing import Final, NamedTuple

#: Commands that price several setups, or draw one: every option of a setup may be a list there.
SEVERAL: Final = ("compare", "chart", "report")
#: Commands that price a setup: memory, time, or what a run of it costs.
PRICED: Final = (
    "estimate", "train-time", "mfu", "export", "import", "solve", "advise", "search", *SEVERAL,
)  # fmt: skip
#: Commands that ask for a GPU.
DEVICE: Final = (*PRICED, "infer")
SETUP: Final = (*PRICED, "explain", "measure", "verify")
#: Options of a setup that serving has too.
SERVED: Final = (*SETUP, "infer")
ESTIMATE: Final = ("estimate",)
LAYOUT: Final = (*PRICED, "explain")
RANKS: Final = (*PRICED, "explain", "measure", "verify")
MEASURE: Final = ("measure", "verify")
ON_DEVICE: Final = ("measure", "verify", "calibrate")
ACCURACY: Final = ("accuracy", "chart")
EVERY: Final = (
    "estimate", "explain", "measure", "verify", "calibrate", "accuracy", "list", "show", "doctor",
    "diff", "train-time", "mfu", "infer", "export", "import", "solve", "advise", "search", *SEVERAL,
)  # fmt: skip
PANELS: Final = (
    "Model", "Training", "Feedback", "Serving", "Parallelism", "Hardware", "Search", "Comparison",
    "Chart", "Run",
    "Throughput", "Cost", "Measuring", "Rows", "Output",
)  # fmt: skip


class Option(NamedTuple):
    """One option.

    kind: text, count (k = 1024), decimal (k = 1000), number, memory, recompute, peft, name, names,
    file, flag or many.
    """

    name: str
    kind: str
    panel: str
    help: str
    default: str = ""
    field: str = ""  # of TrainingSetup; peft.NAME of its PeftSetup
    parallel: str = ""  # of ParallelPlan
    serving: str = ""  # of ServingSetup
    commands: tuple[str, ...] = SETUP
    choices: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()  # beside --name

    @property
    def flag(self) -> str:
        """The long spelling."""
        return f"--{self.name}"

    @property
    def takes_value(self) -> bool:
        return self.kind != "flag"

    @property
    def metavar(self) -> str:
        """What stands for the value in the help."""
        if self.name == "setup":
            return "OPTIONS"
        return _METAVARS.get(self.kind, "NAME" if self.choices else "TEXT")


_METAVARS: Final = {
    "count": "N", "decimal": "N", "number": "X", "memory": "SIZE", "name": "NAME", "file": "FILE",
    "recompute": "NAME", "many": "FIELD=VALUE", "counts": "N,N,...", "reshard": "WHETHER",
    "names": "NAME,...", "peft": "NAME",
}  # fmt: skip
