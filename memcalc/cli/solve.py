"""memcalc solve WHAT MODEL: the extreme value of one option that fits, and the next one, which does not.

WHAT: micro-batch, seq, layers (the largest), gpus (the smallest) of a training setup; batch, context
(the largest) of serving. The setup is stated as for `estimate`, of the last two as for `infer`. Exit
status 0, 3 where nothing fits, 2 for bad input. Checked by: cli/test_solve.py.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from memcalc.cli.app import parse_arguments
from memcalc.cli.deliver import deliver
from memcalc.cli.options import BY_NAME
from memcalc.cli.parse import Arguments, Value, check_positionals
from memcalc.cli.request import typed
from memcalc.cli.variant_cases import Maker
from memcalc.cli.variants import case_of
from memcalc.errors import ConfigError, spelled, unknown
from memcalc.output.progress import progress
from memcalc.planning.solve.answer import Solution

if TYPE_CHECKING:
    from memcalc.output.console import Page
    from memcalc.planning.cases import Case, Refused, Tell
    from memcalc.planning.solve.training import Question, Trials

NOTHING_FITS: Final = 3
#: What is solved for in training -> options it takes the place of.
TRAINING: Final = {
    "micro-batch": ("micro-batch",), "seq": ("seq",), "gpus": ("gpus", "dp"), "layers": ("layers",),
}  # fmt: skip
SERVING: Final = ("batch", "context")
#: Those with neighbours a chosen distance apart.
_STEPPED: Final = ("seq", "context")


def run(arguments: Arguments) -> int:
    """Solve, write the result, and return 0, or 3 where nothing fits."""
    with progress("solve", arguments.has("quiet"), after_s=1.0) as tell:
        found = solution(arguments, tell)
    _deliver(arguments, found)
    return 0 if found.value is not None else NOTHING_FITS


def solution(arguments: Arguments, tell: Tell | None = None) -> Solution:
    """The solution of a command line. Raises ConfigError."""
    what = _what(arguments)
    ask = _serving if what in SERVING else _training
    return ask(what, _step(arguments, what), _setup_alone(arguments, what), tell)


def _what(arguments: Arguments) -> str:
    check_positionals(arguments, given_elsewhere=1)
    if arguments.has("json") and arguments.has("quiet"):
        raise ConfigError("--quiet: got --json too; rule: one form of output")
    valid = [*TRAINING, *SERVING]
    if not arguments.positionals:
        raise ConfigError(f"solve: got no WHAT; valid: {', '.join(valid)}")
    what = spelled(arguments.positionals[0], valid)
    if what not in valid:
        if (other := arguments.positionals[-1]) in valid:
            raise ConfigError(
                f"solve: got {what!r} first; rule: memcalc solve WHAT MODEL; nearest valid: "
                f"memcalc solve {other} {what}"
            )
        raise unknown("solve", what, valid)
    if len(arguments.positionals) < 2 and "config" not in arguments.options:
        raise ConfigError("solve: got no MODEL; rule: memcalc solve WHAT MODEL")
    return what


def _step(arguments: Arguments, what: str) -> int:
    text = arguments.text("step")
    if text is None:
        return 1
    if what not in _STEPPED:
        raise ConfigError(f"--step: got {text} with {what}; valid: {', '.join(_STEPPED)}")
    return int(typed(BY_NAME["step"], text))


def _setup_alone(arguments: Arguments, what: str) -> Arguments:
    """The arguments of the command that prices one value. Raises ConfigError for what is not its own."""
    command = "infer" if what in SERVING else "estimate"
    for name in TRAINING.get(what, (what,)):
        if name in arguments.options:
            raise ConfigError(f"--{name}: got {arguments.text(name)}; rule: solve {what} finds it")
    options = {name: value for name, value in arguments.options.items() if name != "step"}
    for name in options:
        if command not in BY_NAME[name].commands:
            other = "serving" if command == "infer" else "training"
            raise ConfigError(f"--{name}: not an option of {other}, which solve {what} is about")
    return Arguments(command, arguments.positionals[1:], options)


def _no_gpu(usable: int | None) -> None:
    if usable is None:
        raise ConfigError("solve: got no GPU; rule: --gpu, --cluster or --gpu-memory")


def base_options(case: Case) -> dict[str, Value]:
    """The model and the options of a case, as its own command states them."""
    words = shlex.split(case.command)[2:]
    return {"model": case.model, **parse_arguments("estimate", words).options}


def _training(what: str, step: int, arguments: Arguments, tell: Tell | None) -> Solution:
    from memcalc.planning.solve import training

    case = case_of(arguments)
    _no_gpu(case.device.usable_bytes)
    options = {
        name: value for name, value in base_options(case).items() if name not in TRAINING[what]
    }
    trials = training.Trials(_maker(what, options, case), tell)
    return training.solve(_question(what, step, case, trials), trials)


def _question(what: str, step: int, case: Case, trials: Trials) -> Question:
    from memcalc.planning.solve import training

    if what == "micro-batch":
        return training.micro_batches(case)
    if what == "seq":
        return training.sequences(case, step, trials)
    return training.gpu_counts(case) if what == "gpus" else training.depths(case)


def _maker(what: str, options: dict[str, Value], case: Case) -> Callable[[int], Case | Refused]:
    """The case of one value; more blocks than the model has are stated as the model's own."""
    maker, own = Maker(), case.config.num_hidden_layers

    def make(value: int) -> Case | Refused:
        changed: dict[str, Value] = {what: str(value)}
        if what == "layers" and value > own:
            stated = options.get("set")
            known = stated if isinstance(stated, list) else []
            changed = {"set": [*known, f"model.num_hidden_layers={value}"]}
        return maker.case({}, {**options, **changed})

    return make


def _serving(what: str, step: int, arguments: Arguments, tell: Tell | None) -> Solution:
    from memcalc.cli.infer import serving_stated
    from memcalc.cli.request import device_stated, layout_stated
    from memcalc.inputs.models import load_model
    from memcalc.planning.solve.serving import Served, ServingTrials, batches, contexts
    from memcalc.planning.solve.training import solve

    if (path := arguments.text("config")) is not None:
        from memcalc.cli.runfile import merge_run_file

        merge_run_file(arguments, path)
        arguments.options.pop(what, None)
    check_positionals(arguments)
    setup, device = serving_stated(arguments), device_stated(arguments)
    _no_gpu(device.usable_bytes)
    name = arguments.positionals[0]
    words = ["memcalc infer", shlex.quote(name), *_words(arguments.options)]
    served = Served(
        load_model(name), setup, layout_stated(arguments), device,
        lambda value: " ".join([*words, f"--{what} {value}"]),
    )  # fmt: skip
    question = batches() if what == "batch" else contexts(setup, step)
    return solve(question, ServingTrials(what, served, tell))


def _words(options: dict[str, Value]) -> list[str]:
    from memcalc.cli.variant_cases import words_of
    from memcalc.cli.variant_lists import SETUP_PANELS

    panels = (*SETUP_PANELS, "Serving")
    stated = {name: value for name, value in options.items() if BY_NAME[name].panel in panels}
    return list(words_of(stated))


def _deliver(arguments: Arguments, found: Solution) -> None:
    from memcalc.output.solve_text import quiet_line, solve_page

    def plain() -> dict[str, Any]:
        return found.to_dict()

    def page(sheet: Page) -> None:
        solve_page(sheet, found.to_dict())

    deliver(arguments, plain, page, quiet_line(plain()) if arguments.has("quiet") else None)
    if not arguments.has("quiet") and not arguments.wants_json:
        from memcalc.output.files import put_notes

        put_notes(found.notes)
