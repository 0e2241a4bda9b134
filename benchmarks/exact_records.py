"""Comparisons with PyTorch, transformers and PEFT, written down: benchmarks/exact/*.jsonl.

    python -m benchmarks.exact_records                   all; compiled takes half an hour
    python -m benchmarks.exact_records saved ranks       these files
    python -m benchmarks.exact_records --check           what memcalc says today against the records

A line is one configuration of one class: predicted, the oracle's and the textbook's bytes (parameters: a
count). The configurations are those the tests draw. `memcalc accuracy --report` reads the files.
Checked by: tests/harness/test_report_accuracy_exact.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from benchmarks.exact.case import Case

FOLDER: Final = Path(__file__).parent / "exact"


#: Module of benchmarks/exact -> the files whose configurations its functions of these names yield.
_MODULES: Final = {
    "decoders": ("profiles", "widths", "saved", "peaks"),
    "ranks": ("ranks",),
    "families": ("families", "autocast", "encoders", "caches", "generations"),
    "tuning": ("adapters", "packed", "tuned_ranks", "feedback"),
    "compiled": ("compiled",),
    "phases": ("phases", "evaluations", "loads", "phase_ranks"),
}


def _cases(module: str, name: str) -> Callable[[], Iterator[Case]]:
    def cases() -> Iterator[Case]:
        return iter(getattr(import_module(f"benchmarks.exact.{module}"), name)())

    return cases


#: File -> its configurations.
FILES: Final[dict[str, Callable[[], Iterator[Case]]]] = {
    name: _cases(module, name) for module, names in _MODULES.items() for name in names
}


def lines(case: Case) -> Iterator[dict[str, Any]]:
    """The records of a configuration, one a class."""
    import torch

    told, seen, written = case.predicted(), case.oracle(), case.textbook()
    for name, value in told.items():
        yield {
            "class": name, "name": case.name, "config": case.said, "predicted": value,
            "oracle": seen[name], "textbook": _whole(written.get(name)), "torch": torch.__version__,
        }  # fmt: skip


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def write(name: str) -> int:
    """Write a file of records; the number of its lines."""
    count = 0
    parts = []
    for case in FILES[name]():
        for line in lines(case):
            parts.append(json.dumps(line) + "\n")
            count += 1
        if sys.stderr.isatty():
            print(f"\r{name}: {count}", end="", file=sys.stderr)
    (FOLDER / f"{name}.jsonl").write_text("".join(parts), "utf-8")
    return count


def recorded(name: str) -> list[dict[str, Any]]:
    """The records of a file."""
    text = (FOLDER / f"{name}.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


def changed(name: str, every: int = 1) -> list[str]:
    """Records whose prediction or closed form is another today; every: of how many configurations one."""
    held = {(row["class"], row["name"]): row for row in recorded(name)}
    found, seen = [], set()
    for number, case in enumerate(FILES[name]()):
        mine = [key for key in held if key[1] == case.name]
        seen.update(mine)
        if not mine:
            found.append(f"{name} {case.name}: not recorded")
        if number % every:
            continue
        told, written = case.predicted(), case.textbook()
        for kind, value in told.items():
            row = held.get((kind, case.name))
            hand = _whole(written.get(kind))
            if row is None or (row["predicted"], row["textbook"]) != (value, hand):
                found.append(f"{name} {case.name} {kind}: {value}, recorded {row}")
    return found + [f"{name} {key}: no longer drawn" for key in held if key not in seen]


def main(given: Iterable[str] | None = None) -> int:
    """Write or check the files named, all of them by default; 1 where a check finds a change."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="*", metavar="FILE", help=", ".join(FILES))
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    stated = parser.parse_args(None if given is None else list(given))
    unknown = [name for name in stated.files if name not in FILES]
    if unknown:
        parser.error(f"file: got {unknown[0]}; valid: {', '.join(FILES)}")
    wrong = 0
    for name in stated.files or FILES:
        if stated.check:
            found = changed(name)
            wrong += len(found)
            print("\n".join(found) or f"{name}: as recorded")
        else:
            print(f"{name}: {write(name)} records", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
