"""Classes of published rows: what is promised, what something was assumed of, what was fitted; verdicts.

Each figure is scored beside the closed form of the same row (textbook_rows.py).
Checked by: unit/test_report_accuracy_proof.py, cli/test_report_accuracy.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from memcalc.accuracy.adapters import with_adapters
from memcalc.accuracy.groups import is_fitted, is_promised
from memcalc.accuracy.pricing import MEMORY, THROUGHPUT, Pair
from memcalc.accuracy.proof.items import Class, Item
from memcalc.accuracy.report import setup_words
from memcalc.accuracy.scores import setup_key
from memcalc.accuracy.serving import ENGINES, is_serving
from memcalc.accuracy.setups import SAME_CHIP
from memcalc.accuracy.textbook_rows import textbook_error, textbook_fits

MEMORY_GROUP: Final = "Memory of published runs"
SPEED_GROUP: Final = "Speed of published runs"
SERVING_GROUP: Final = "Serving"
ADAPTERS_GROUP: Final = "Fine-tuning with adapters"
_SOURCES: Final = "published figures"


def published(pairs: Iterable[Pair]) -> list[Class]:
    """Every class of published rows that has any."""
    listed = list(pairs)
    training = [p for p in listed if not is_serving(p.row) and not with_adapters(p.row)]
    memory = [p for p in training if p.what == MEMORY and p.scored]
    speed = [p for p in training if p.what == THROUGHPUT and p.scored]
    fresh = [p for p in speed if not is_fitted(p.row)]
    found = [
        _class(MEMORY_GROUP, "everything stated, trusted", [p for p in memory if is_whole(p)]),
        _class(MEMORY_GROUP, "something assumed, or less trusted",
               [p for p in memory if not is_whole(p)]),
        _class(SPEED_GROUP, "promised: everything stated, A100, H100, B200 as sold",
               [p for p in fresh if is_promised(p)]),
        _class(SPEED_GROUP, "something assumed, less trusted, or another GPU",
               [p for p in fresh if not is_promised(p)]),
        _class(SPEED_GROUP, "of sources a constant was fitted to: no evidence",
               [p for p in speed if is_fitted(p.row)]),
    ]  # fmt: skip
    return [one for one in [*found, *_apart(listed)] if one.items]


def is_whole(pair: Pair) -> bool:
    """Whether a row states all that decides its figure, and is trusted."""
    row = pair.row
    return row.text("priceable") == "yes" and row.text("confidence") == "high"


def _apart(listed: Sequence[Pair]) -> list[Class]:
    """Runs that serve, by engine, and that train adapters."""
    serving = [p for p in listed if is_serving(p.row)]
    found = [_class(SERVING_GROUP, "memory", [p for p in serving if p.what == MEMORY])]
    for engine in dict.fromkeys(ENGINES.values()):
        mine = [p for p in serving if ENGINES[p.row.text("stack") or ""] == engine]
        rates = [p for p in mine if p.what == THROUGHPUT and p.scored]
        found.append(_class(SERVING_GROUP, f"tokens/s of {engine}", rates))
    tuned = [p for p in listed if with_adapters(p.row)]
    for name, what in (("memory", MEMORY), ("step time", THROUGHPUT)):
        mine = [p for p in tuned if p.what == what and (p.scored or what == MEMORY)]
        found.append(_class(ADAPTERS_GROUP, name, mine))
    return found


def _class(group: str, name: str, pairs: Sequence[Pair]) -> Class:
    unit = "bytes" if pairs and pairs[0].what == MEMORY else "rate"
    return Class(group, name, _SOURCES, items(pairs), unit)


def items(pairs: Sequence[Pair]) -> list[Item]:
    """Figures of rows; those of one measurement share its weight."""
    keys = [(setup_key(p.row), p.what, p.kind) for p in pairs]
    return [
        Item(
            p.row.id, setup_words(p.row), p.row.source, 100 * p.error, textbook_error(p),
            1 / keys.count(key), p.measured, p.row.source,
        )
        for p, key in zip(pairs, keys, strict=True)
    ]  # fmt: skip


def by(pairs: Sequence[Pair], group: Callable[[Pair], str]) -> dict[str, list[Item]]:
    """Figures by a group, in the order of their names."""
    names = sorted({group(pair) for pair in pairs})
    return {name: items([p for p in pairs if group(p) == name]) for name in names}


def by_device(pairs: Iterable[Pair]) -> dict[str, list[Item]]:
    """Steps of training by the GPU they ran on, fitted sources left out."""
    mine = [
        p for p in pairs
        if p.what == THROUGHPUT and p.scored and not is_serving(p.row)
        and not with_adapters(p.row) and not is_fitted(p.row)
    ]  # fmt: skip
    return by(mine, lambda pair: pair.row.text("gpu") or "not stated")


def by_kind(pairs: Iterable[Pair]) -> dict[str, list[Item]]:
    """Memory that everything is stated of by what was read: allocated, reserved, nvidia-smi."""
    mine = [p for p in pairs if p.what == MEMORY and p.scored and is_whole(p)]
    return by([p for p in mine if not is_serving(p.row)], lambda pair: pair.kind)


def verdicts(pairs: Iterable[Pair]) -> dict[str, Any]:
    """How many runs that ran are said to fit: {"n", "memcalc", "textbook"} and those said not to.

    Every row ran on its GPU, so that it fits is known; no published row states a run that did not. Cards
    priced as another (SAME_CHIP) have other memory and are left out.
    """
    seen: dict[str, Pair] = {}
    for pair in pairs:
        as_sold = pair.row.text("gpu") not in SAME_CHIP and not is_serving(pair.row)
        if pair.fits is not None and as_sold and is_whole(pair):
            known = seen.get(pair.row.id)
            seen[pair.row.id] = pair if known is None or pair.what == MEMORY else known
    said = [(pair, textbook_fits(pair)) for pair in seen.values()]
    known_pairs = [(pair, other) for pair, other in said if other is not None]
    return {
        "n": len(known_pairs),
        "memcalc": sum(bool(pair.fits) for pair, _ in known_pairs),
        "textbook": sum(bool(other) for _, other in known_pairs),
        "wrong": [
            {"id": pair.row.id, "source": pair.row.source, "said": setup_words(pair.row),
             "gpu": pair.gpu}
            for pair, _ in known_pairs if not pair.fits
        ],
    }  # fmt: skip
