"""One configuration that memcalc and an oracle both answer, and what a paper's closed form makes of it.

The configurations are those of the tests (tests/oracle): `drawn_by` runs a test's own draws with its
comparison replaced by a list, so that nothing is drawn twice in two ways.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple
from unittest import mock

from memcalc import estimate
from memcalc.accuracy.textbook import Ways
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.training import TrainingSetup

#: Bytes (parameters: a count) by class of the report.
Answer = Mapping[str, float]
#: The same of a closed form; a class that none answers is left out.
Written = Mapping[str, float]


class Case(NamedTuple):
    """One configuration. name: in its file; said: in words. Each function answers by class."""

    name: str
    said: str
    predicted: Callable[[], Answer]
    oracle: Callable[[], Answer]
    textbook: Callable[[], Written] = dict


class _EnoughError(Exception):
    """What a test calls next is not wanted."""


def drawn_by(
    module: Any, comparison: str, *tests: str, once: bool = False
) -> Iterator[tuple[Any, ...]]:
    """Arguments with which tests of a module call its comparison, every draw of them.

    comparison: the function's name there; in a run of the tests it says what differs. once: it is an oracle
    instead, which a test calls once; the test goes no further.
    """
    seen: list[tuple[Any, ...]] = []

    def note(*arguments: Any, **_: Any) -> list[Any]:
        seen.append(arguments)
        if once:
            raise _EnoughError
        return []

    with mock.patch.object(module, comparison, note), mock.patch("tests.draws.ALL", True):
        for name in tests:
            test = getattr(module, name)
            for stated in parameters_of(test):
                with suppress(_EnoughError):
                    test(**stated)
    yield from seen


def parameters_of(test: Any) -> Iterator[dict[str, Any]]:
    """What pytest would call a test with: every combination of its marks."""
    marks = [mark for mark in getattr(test, "pytestmark", ()) if mark.name == "parametrize"]
    ways = []
    for mark in marks:
        named, values = mark.args[0], mark.args[1]
        names = [n.strip() for n in named.split(",")] if isinstance(named, str) else list(named)
        each = [value if len(names) > 1 else (value,) for value in values]
        ways.append([dict(zip(names, value, strict=True)) for value in each])
    for chosen in product(*ways):
        yield {key: value for one in chosen for key, value in one.items()}


@lru_cache(maxsize=512)
def counted(config: ModelConfig) -> int:
    """A model's parameters, which the closed forms are given."""
    setup = TrainingSetup(seq_len=1, precision="bf16")
    if config.is_encoder:
        setup = TrainingSetup(seq_len=1, precision="bf16", stack="hf")
    return estimate(config, setup, allocator=False).model.parameters


def ways_of(layout: Any) -> Ways:
    """A layout's degrees as the closed forms know them."""
    shard = layout.dp if layout.shard is None else layout.shard
    return Ways(
        stage=3 if layout.fsdp else 0,
        shard=shard * layout.cp,
        tp=layout.tp,
        pp=layout.pp,
        cp=layout.cp,
        sp=bool(layout.sp),
    )
