"""What of the wishes the spaces have not: values that no setup can have, batches that nothing divides.

Checked by: unit/test_search_space.py, cli/test_search.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from memcalc.errors import ConfigError
from memcalc.inputs.parallel import divisors
from memcalc.planning.search.wishes import Wishes

#: Values named in a message.
_FEW: Final = 8
#: How far a batch is looked for that some number of replicas divides.
_TRIED: Final = 4096


def not_there(wishes: Wishes) -> Iterator[str]:
    """Values that were asked for and that no space has, an axis at a time."""
    for axis, asked in wishes.fixed.items():
        offered = wishes.offered.get(axis)
        missing = [one for one in asked if offered and one not in offered]
        if missing:
            yield f"{axis} {', '.join(missing)}: not in the space; it has {_few(offered or {})}"


def check_there(wishes: Wishes) -> None:
    """Raise ConfigError where an axis has none of the values asked for: no setup can be."""
    for axis, asked in wishes.fixed.items():
        offered = wishes.offered.get(axis)
        if offered and not set(asked) & set(offered):
            raise ConfigError(
                f"fix: got {axis}={','.join(asked)}; rule: a value of the space of "
                f"{wishes.config.name} on {wishes.gpus} GPUs; valid: {_few(offered)}"
            )


def why_empty(wishes: Wishes) -> str:
    """Why there is no setup, though every axis has values: a batch that nothing divides, with the next that
    is divided; or wishes that do not go together."""
    replicas = sorted({wishes.gpus // inner for inner in _inner(wishes)})
    micro = min(map(int, wishes.fixed.get("micro-batch", ["1"])))
    turns = sorted({dp * micro for dp in replicas})
    near = [b for b in range(wishes.batch, wishes.batch + _TRIED) if any(b % t == 0 for t in turns)]
    if turns and wishes.batch not in near:
        said = f"no setup: dp x micro-batch (at least {turns[0]}) must divide a batch of {wishes.batch}"
        return f"{said}; nearest: --global-batch {near[0]}" if near else said
    fixed = [f"{axis}={','.join(values)}" for axis, values in wishes.fixed.items()]
    fixed += [f"{axis} up to {most}" for axis, most in wishes.most.items()]
    return f"no setup has all that was asked for: {', '.join(fixed) or 'nothing fixed'}"


def _inner(wishes: Wishes) -> Iterator[int]:
    """Products of tp, pp and cp that divide the GPUs and that the axes' values allow."""
    every = {axis: wishes.offered.get(axis, {"1": None}) for axis in ("tp", "pp", "cp")}
    allowed = {
        axis: [int(one) for one in values if wishes.allows(axis, int(one))]
        for axis, values in every.items()
    }
    whole = set(divisors(wishes.gpus))
    for tp in allowed["tp"]:
        for pp in allowed["pp"]:
            yield from (tp * pp * cp for cp in allowed["cp"] if tp * pp * cp in whole)


def _few(values: dict[str, None]) -> str:
    named = list(values)
    return ", ".join(named if len(named) <= _FEW else [*named[:_FEW], "..."])
