"""memcalc advise MODEL: ranked changes that make a setup fit, or faster, each with its own command.

The setup is stated as for `estimate`; it needs a GPU. Exit status 0: advice is a result whatever it
says. Checked by: cli/test_advise.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from memcalc.cli.deliver import deliver
from memcalc.cli.options import BY_NAME
from memcalc.cli.parse import Arguments, check_positionals
from memcalc.cli.request import typed
from memcalc.cli.solve import base_options
from memcalc.cli.variant_cases import Maker
from memcalc.cli.variants import case_of
from memcalc.errors import ConfigError
from memcalc.output.progress import progress

if TYPE_CHECKING:
    from memcalc.output.console import Page
    from memcalc.planning.advise.advise import Advice

_TOP: Final = 16


def run(arguments: Arguments) -> int:
    """Price changes, write them ranked; always 0."""
    if arguments.has("json") and arguments.has("quiet"):
        raise ConfigError("--quiet: got --json too; rule: one form of output")
    with progress("advise", arguments.has("quiet"), after_s=1.0) as tell:
        found = advice(arguments, tell)
    _deliver(arguments, found)
    return 0


def advice(arguments: Arguments, tell: Any = None) -> Advice:
    """The advice on the setup of a command line. Raises ConfigError."""
    from memcalc.planning.advise.advise import advise
    from memcalc.planning.advise.change import Situation
    from memcalc.planning.cases import point_of

    check_positionals(arguments, given_elsewhere=1)
    text = arguments.text("top")
    top = _TOP if text is None else int(typed(BY_NAME["top"], text))
    case = case_of(Arguments("estimate", arguments.positionals, arguments.options))
    if case.device.gpu is None or case.device.usable_bytes is None:
        raise ConfigError("advise: got no GPU; rule: --gpu NAME or --cluster NAME")
    options = base_options(case)
    point = point_of(case)
    if point.result is None:
        raise ConfigError(point.reason or "advise: the setup cannot be priced")
    maker = Maker()
    at = Situation(options, case, point.result)
    return advise(at, lambda changed: maker.case({}, dict(changed)), tell, top)


def _deliver(arguments: Arguments, found: Advice) -> None:
    from memcalc.output.advise_text import advise_page, quiet_line

    plain = found.to_dict()

    def page(sheet: Page) -> None:
        advise_page(sheet, plain)

    line = quiet_line(plain) if arguments.has("quiet") else None
    deliver(arguments, lambda: plain, page, line)
    if not arguments.has("quiet") and not arguments.wants_json:
        from memcalc.output.files import put_notes

        put_notes(plain["notes"])
