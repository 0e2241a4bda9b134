"""The estimates of a command line's cases, with a bar on stderr when they take longer than a second."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from memcalc.cli.parse import Arguments
from memcalc.cli.variants import cases_of
from memcalc.errors import ConfigError
from memcalc.output.progress import progress
from memcalc.planning.cases import Point, points

if TYPE_CHECKING:
    from memcalc.output.progress import Tell

_BAR_AFTER_S = 1.0


def priced(arguments: Arguments, most: int | None = None) -> list[Point]:
    """The exact estimate of every case of a command. Raises ConfigError.

    most: how many a picture can show; more are refused before they are computed.
    """
    cases = cases_of(arguments)
    if most is not None and len(cases) > most:
        what = " ".join([arguments.command, *arguments.positionals[:1]])
        raise ConfigError(
            f"{what}: got {len(cases):,} setups; rule: at most {most} in one picture; `memcalc "
            "compare` and `memcalc chart sweep` take more"
        )
    with telling(arguments) as tell:
        return points(cases, tell)


@contextmanager
def telling(arguments: Arguments) -> Iterator[Tell | None]:
    """Whom to tell (stage, done, total) of a chart's work; nothing is shown in its first second."""
    what = " ".join([arguments.command, *arguments.positionals[:1]])
    with progress(what, arguments.has("quiet"), _BAR_AFTER_S) as tell:
        yield tell
