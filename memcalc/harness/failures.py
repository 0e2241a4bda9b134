"""What a run that did not end well says in its record: out of memory, with what was asked for, or why.

Running out of memory is a result. PyTorch raises it under several names; how much was asked for
stands in the message. Checked by: harness/test_measure.py.
"""

from __future__ import annotations

import re
import traceback
from pathlib import Path
from typing import Any

import torch

from memcalc.units import GIB, KIB, MIB

_UNITS = {"bytes": 1, "byte": 1, "b": 1, "kib": KIB, "mib": MIB, "gib": GIB}
_ASKED = re.compile(r"tried to allocate ([0-9]+(?:\.[0-9]+)?) ?([kmg]ib|bytes?|b)\b", re.IGNORECASE)
#: What RuntimeErrors say: CUDA's own, cuBLAS', the CPU allocator's on Linux and on Windows.
_SAYS_MEMORY = (
    "out of memory", "cublas_status_alloc_failed", "can't allocate memory", "not enough memory",
)  # fmt: skip
_LONGEST = 400


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on the device or the host."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(said in text for said in _SAYS_MEMORY)


def asked_bytes(text: str) -> int | None:
    """The allocation that failed, in bytes as the message has it (two decimals), or None."""
    match = _ASKED.search(text)
    if match is None:
        return None
    return round(float(match.group(1)) * _UNITS[match.group(2).lower()])


def first_line(error: BaseException) -> str:
    """An exception in one line of printable characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def described(error: BaseException, stage: str, phase: str | None) -> dict[str, Any]:
    """An exception as a record keeps it: type, one line, stage of the run, phase of the step."""
    found: dict[str, Any] = {
        "type": type(error).__name__,
        "message": first_line(error),
        "stage": stage,
        "phase": phase,
        "where": _innermost(error),
    }
    if is_out_of_memory(error):
        found["asked_bytes"] = asked_bytes(str(error))
    return found


def _innermost(error: BaseException) -> str | None:
    """`attention.py:55 in core`, the last frame of this package; files by name, never by path."""
    package = Path(__file__).parents[1]
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if Path(f.filename).is_relative_to(package)]
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno} in {ours[-1].name}" if ours else None
