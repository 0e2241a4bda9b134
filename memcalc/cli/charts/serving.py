"""memcalc chart serving MODEL: tokens/s and latency over batches, memory over contexts.

Takes the options of `infer`; --batch and --context may be lists, whose first values the other sweep is at.
Checked by: unit/test_chart_serving.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from memcalc.cli.options import BY_NAME, options_of
from memcalc.cli.parse import Arguments
from memcalc.cli.request import device_stated, layout_stated, typed
from memcalc.cli.variant_lists import values_of
from memcalc.errors import ConfigError
from memcalc.planning.charts.serving import BATCH, CONTEXT, serving, sizes

_OUTPUT: Final = ("theme", "out", "json", "csv", "markdown", "quiet", "debug")
_MOST: Final = 64


def found(arguments: Arguments) -> dict[str, Any]:
    """The chart's object from the command line. Raises ConfigError."""
    from memcalc.cli.infer import serving_stated
    from memcalc.engine.serving.curves import limits, points
    from memcalc.engine.serving.infer import prepared

    if len(arguments.positionals) != 2:
        raise ConfigError("chart serving: got no MODEL; rule: memcalc chart serving MODEL")
    _check(arguments)
    stated = {name: _values(arguments, name) for name in (BATCH, CONTEXT)}
    options = dict(arguments.options)
    options |= {name: str(values[0]) for name, values in stated.items() if values}
    own = Arguments("infer", arguments.positionals[1:], options)
    made = prepared(
        own.positionals[0], serving_stated(own), parallel=layout_stated(own), gpu=device_stated(own)
    )
    found = limits(made)
    resolved = made.plan.resolved
    batches = stated[BATCH] or sizes(found[0], BATCH)
    contexts = stated[CONTEXT] if len(stated[CONTEXT]) > 1 else []
    contexts = contexts or _possible(made.plan.config, sizes(found[1], CONTEXT))
    if len(batches) == 1:
        batches = sorted({*sizes(found[0], BATCH), *batches})
    return serving(
        made,
        points(made, [(batch, resolved.context) for batch in batches]),
        points(made, [(resolved.batch, context) for context in contexts]),
        found,
    )


def _possible(config: Any, contexts: Sequence[int]) -> list[int]:
    """Contexts that a model with learned positions has."""
    if config.position_embedding != "learned":
        return list(contexts)
    limit = config.max_position_embeddings
    return [*(context for context in contexts if context < limit), limit]


def _check(arguments: Arguments) -> None:
    """Raise ConfigError for an option that `infer` does not take."""
    valid = {option.name for option in options_of("infer")} | set(_OUTPUT)
    foreign = [name for name in arguments.options if name not in valid]
    if foreign:
        raise ConfigError(
            f"--{foreign[0]}: got with chart serving; rule: options of `memcalc infer`"
        )


def _values(arguments: Arguments, name: str) -> list[int]:
    """The sizes that an option states, rising; none where it is not given. Raises ConfigError."""
    text = arguments.text(name)
    if text is None:
        return []
    option = BY_NAME[name]
    values = [int(typed(option, value)) for value in values_of(option, text)]
    if len(values) > _MOST:
        raise ConfigError(f"--{name}: got {len(values)} values; rule: at most {_MOST}")
    return sorted(values)
