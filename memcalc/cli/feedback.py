"""memcalc estimate MODEL --rlhf METHOD: memory and time of training from feedback."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from memcalc.cli.feedback_options import FIELDS
from memcalc.cli.options import BY_NAME
from memcalc.cli.parse import Arguments
from memcalc.cli.request import Request, typed
from memcalc.errors import ConfigError, NotInThisVersionError
from memcalc.inputs.feedback import FeedbackSetup

if TYPE_CHECKING:
    from memcalc.engine.feedback.results import FeedbackEstimate
    from memcalc.output.console import Page

DOES_NOT_FIT = 3
#: Options of `estimate` that ask for more of a plain training step.
_PLAIN = ("ops", "timeline", "csv")


def check_options(arguments: Arguments) -> None:
    """Raise ConfigError for options of feedback training without --rlhf."""
    if "rlhf" in arguments.options:
        return
    for name in FIELDS:
        if name in arguments.options:
            raise ConfigError(f"--{name}: got it without --rlhf; rule: --rlhf ppo, dpo, rm or grpo")


def stated(arguments: Arguments) -> FeedbackSetup:
    """The setup that options state. Raises ConfigError."""
    found: dict[str, Any] = {}
    for name, field in FIELDS.items():
        if name in arguments.options:
            found[field] = typed(BY_NAME[name], arguments.options[name])
    return FeedbackSetup(**found)


def run(arguments: Arguments, request: Request) -> int:
    """Estimate, write the result, and return 0 when it fits or no GPU was named, else 3."""
    for name in _PLAIN:
        if name in arguments.options:
            raise NotInThisVersionError(
                f"--{name}: with --rlhf it is not in this version; valid: --json"
            )
    if (arguments.text("phase") or "train") != "train":
        raise NotInThisVersionError(
            "--phase: with --rlhf it is not in this version; valid: --phase train"
        )
    from memcalc.engine.feedback.feedback import DEFAULT_STACK, feedback

    setup = request.setup
    if "stack" not in arguments.options:
        setup = replace(setup, stack=DEFAULT_STACK)
    result = feedback(
        request.config,
        stated(arguments),
        setup,
        parallel=request.parallel,
        gpu=request.device(arguments),
        kernels=request.kernels,
    )
    _deliver(arguments, request, result)
    return DOES_NOT_FIT if result.fits is False else 0


def _deliver(arguments: Arguments, request: Request, result: FeedbackEstimate) -> None:
    from memcalc.cli.deliver import deliver
    from memcalc.output.estimate_text import quiet_line
    from memcalc.output.feedback_text import feedback_page
    from memcalc.output.files import put_notes

    def plain() -> dict[str, Any]:
        from memcalc.cli.deliver import estimate_dict

        found = estimate_dict(request, result.estimate)
        return found | {"feedback": result.to_dict()["feedback"]}

    def page(sheet: Page) -> None:
        feedback_page(sheet, result)

    quiet = arguments.has("quiet")
    as_json = arguments.wants_json or (arguments.text("out") or "").lower().endswith(".json")
    line = quiet_line(result.estimate) if quiet and not as_json else None
    deliver(arguments, plain, page, line)
    if not quiet and not as_json:
        put_notes(result.estimate.notes)
        put_notes(result.estimate.assumptions, "assumed")
