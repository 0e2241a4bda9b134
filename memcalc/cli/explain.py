"""memcalc explain MODEL: the ledger of one micro-batch, and the formula of every total."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memcalc.cli.deliver import deliver
from memcalc.cli.parse import Arguments
from memcalc.cli.request import request_of
from memcalc.engine.explain import explain
from memcalc.output.files import put_notes

if TYPE_CHECKING:
    from memcalc.output.console import Page


def run(arguments: Arguments) -> int:
    """Write the ledger; always 0."""
    request = request_of(arguments)
    found = explain(request.config, request.setup, request.kernels, request.parallel)

    def page(sheet: Page) -> None:
        from memcalc.output.explain_text import explain_page, programs

        explain_page(sheet, found)
        if arguments.has("ops"):
            programs(sheet, found)

    line = "; ".join(f"{total.name} {total.value} {total.unit}" for total in found.totals)
    deliver(arguments, found.to_dict, page, line)
    if not arguments.wants_json and not arguments.has("quiet"):
        put_notes((*request.config.notes, *found.notes))
    return 0
