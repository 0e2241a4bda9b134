"""Why a row is not priced, and what pricing it assumed.

NotExpressedError carries a reason a person can act on; `FINDINGS` are reasons a row's own cells give
before anything is built: what is not described first, then inputs the source left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from memcalc.accuracy import adapters
from memcalc.accuracy.columns import LATER_PRECISIONS, QUANTISED
from memcalc.accuracy.rows import Row
from memcalc.errors import MemcalcError


class NotExpressedError(MemcalcError):
    """What a row states cannot be priced; the message is the reason, in one line."""


def _inference(row: Row) -> str | None:
    run = row.text("run")
    if run in (None, "train", "finetune"):
        return None
    stack = row.text("stack")
    by = f"by {stack.removeprefix('other:')}" if stack else "by an engine that is not stated"
    return f"serving ({run}) {by} is not described: transformers and vllm are"


def _part_of_a_gpu(row: Row) -> str | None:
    part = row.text("mem_rank")
    named = {"weights": "the weights", "kv-pool": "the KV cache"}
    return f"its memory is {named[part]} alone, not a GPU's peak" if part in named else None


def _quantised(row: Row) -> str | None:
    precision = row.text("precision")
    if precision in LATER_PRECISIONS:
        return f"precision {precision} is not in this version"
    if precision in QUANTISED and not adapters.with_adapters(row):
        return f"weights in {precision} do not train, and what trains beside them is not stated"
    return None


def _unknown_input(row: Row) -> str | None:
    if row.text("priceable") != "no":
        return None
    return f"a needed input is unknown: {row.text('why_not') or 'not said which'}"


def _not_stated(row: Row) -> str | None:
    missing = next((name for name in ("seq", "micro_batch") if row.whole(name) is None), None)
    return f"{missing} is not stated" if missing else None


#: Asked in this order; the first reason is the row's.
FINDINGS: Final[tuple[Callable[[Row], str | None], ...]] = (
    _inference, _part_of_a_gpu, adapters.why_not, _quantised, _unknown_input, _not_stated,
)  # fmt: skip


def refuse(row: Row) -> None:
    """Raise NotExpressedError when the row's own cells say why it cannot be priced.

    Checked by: unit/test_accuracy_express.py.
    """
    for finding in FINDINGS:
        if (reason := finding(row)) is not None:
            raise NotExpressedError(reason)
