"""Hand a result to where it was asked for: stdout or --out, as JSON or as text."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from memcalc.cli.parse import Arguments
from memcalc.errors import ConfigError
from memcalc.output.files import put_stdout, to_json, write_text

if TYPE_CHECKING:
    from memcalc.cli.request import Request
    from memcalc.engine.results import Estimate
    from memcalc.output.console import Page


def deliver(
    arguments: Arguments,
    plain: Callable[[], Any],
    page: Callable[[Page], None],
    line: str | None = None,
) -> None:
    """Write the result once. plain: its JSON form; page: its text; line: what --quiet shows."""
    out = arguments.text("out")
    if out is not None and out != "-":
        if arguments.wants_json or out.lower().endswith(".json"):
            write_text(out, to_json(plain()))
        elif arguments.has("quiet") and line is not None:
            write_text(out, line + "\n")
        else:
            write_text(out, _rendered(page, True))
    elif arguments.wants_json:
        put_stdout(to_json(plain()))
    elif arguments.has("quiet") and line is not None:
        put_stdout(line + "\n")
    else:
        put_stdout(_rendered(page, False))


#: Flags that ask for a form of data on stdout.
FORMS: Final = {"json": "json", "csv": "csv", "markdown": "md"}


def form_flag(arguments: Arguments) -> str | None:
    """The flag that asks for a form, None without one. Raises ConfigError for two."""
    asked = [name for name in FORMS if arguments.has(name)]
    if len(asked) > 1:
        raise ConfigError(f"--{asked[1]}: got --{asked[0]} too; rule: one form of output")
    return asked[0] if asked else None


def _rendered(page: Callable[[Page], None], to_file: bool) -> str:
    from memcalc.output.console import render

    return render(page, to_file)


def estimate_dict(request: Request, result: Estimate) -> dict[str, Any]:
    """The JSON object, with the model as stated and what --set changed."""
    from memcalc.inputs.models import model_hash

    plain = result.to_dict()
    setup = plain["setup"]
    hashes = {"model": model_hash(request.model_name), **setup["profile_hashes"]}
    stated = {"set": dict(request.stated), "profile_hashes": hashes}
    plain["setup"] = {"model": request.model_name, **setup, **stated}
    return plain
