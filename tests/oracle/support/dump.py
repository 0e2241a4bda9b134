"""Print what is allocated and freed, in order, in one micro-batch's forward and backward.

    python -m tests.oracle.support.dump llama L=1 recompute=full      the reference (or gpt2)
    python -m tests.oracle.support.dump llama step accum=2 impl=fused  a whole step, the last
    python -m tests.oracle.support.dump hf:mixtral seq=128 checkpoint=1  a tiny HF model

Columns: storage id, bytes, live bytes over the start, phase, ledger operator, aten operator. A
star marks each new maximum.
"""

from __future__ import annotations

import sys
from dataclasses import fields
from itertools import takewhile
from typing import Any

from memcalc.harness.watch.tracker import Alloc, Event
from tests.oracle.support.reference import How, RefConfig
from tests.oracle.support.step import run_step


def _value(text: str) -> Any:
    if text in ("True", "False", "None"):
        return {"True": True, "False": False, "None": None}[text]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _of_optimizer(event: Event) -> bool:
    return isinstance(event, Alloc) and event.phase == "optimizer"


def print_events(initial: list[Alloc], events: list[Event]) -> None:
    known = {alloc.storage: alloc for alloc in initial}
    live = peak = 0
    for event in events:
        if isinstance(event, Alloc):
            known[event.storage] = event
            live += event.nbytes
            sign = "+"
        else:
            live -= event.nbytes
            sign = "-"
        star = "*" if live > peak else " "
        peak = max(peak, live)
        made = known[event.storage]
        by = made.aten if sign == "+" else f"(from {made.phase} {made.aten})"
        amount = f"{sign}{event.nbytes}"
        label = f"{made.phase:9} {made.where:24} {by}"
        print(f"{event.storage:6d} {amount:>14} {live:>14}{star} {label}")
    print(f"peak over the start: {peak}")


def main(arguments: list[str]) -> None:
    target, *rest = arguments or ["llama"]
    whole_step = "step" in rest
    options = {k: _value(v) for k, _, v in (item.partition("=") for item in rest if item != "step")}
    if target.startswith("hf:"):
        from tests.oracle.support.hf import run_hf
        from tests.oracle.support.tiny import TINY, attention_of

        family = target.removeprefix("hf:")
        sizes = {"batch": options.pop("batch", 2), "seq": options.pop("seq", 64)}
        options.setdefault("attention", attention_of(family))
        record = run_hf(TINY[family], **sizes, **options)
        print_events(record.initial, record.events)
        return
    names = {field.name for field in fields(RefConfig)}
    shape: dict[str, Any] = {"k": 4, "f": 256} if target == "gpt2" else {}
    shape |= {k: v for k, v in options.items() if k in names}
    unknown = options.keys() - names - {field.name for field in fields(How)}
    if unknown:
        raise SystemExit(f"unknown options: {', '.join(sorted(unknown))}")
    how = {k: v for k, v in options.items() if k not in names}
    step = run_step(RefConfig(family=target, **shape), How(**how))
    events = step.events
    if not whole_step:
        events = list(takewhile(lambda event: not _of_optimizer(event), events))
    print_events(step.initial, events)


if __name__ == "__main__":
    main(sys.argv[1:])
