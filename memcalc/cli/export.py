"""memcalc export MODEL --format TOOL: a setup as another tool's settings, and what they cannot state.

The setup is stated as for `estimate`; unless --stack is given it is the tool's own code. The document is
read back, and every option an import would lack is named, with where the tool has it instead.
Exit status 0, 2 for bad input. Checked by: cli/test_export.py, property/test_interop.py.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from memcalc.cli.interop_words import options_of_fields, words_text
from memcalc.cli.options import BY_NAME
from memcalc.cli.overrides import parse_overrides
from memcalc.cli.parse import Arguments
from memcalc.cli.request import layout_stated, request_of, typed
from memcalc.errors import ConfigError
from memcalc.inputs.models import load_model
from memcalc.planning.interop.differences import Unexpressed, unexpressed
from memcalc.planning.interop.facts import Facts, facts_of
from memcalc.planning.interop.formats import FORMATS, Format, format_of, stack_for
from memcalc.planning.interop.tool import written

#: What a run needs that no estimate knows.
_YOURS: Final = "learning rate, data, tokenizer, checkpoints and logs are yours to add"


class Exported(NamedTuple):
    """A setup in a tool's settings: text, the tool's flat keys, and the options an import lacks."""

    form: Format
    facts: Facts
    document: dict[str, Any]
    text: str
    lacking: tuple[tuple[str, str], ...]  # option, why


def run(arguments: Arguments) -> int:
    """Write the settings; what they do not state goes to stderr, and into the JSON. Always 0."""
    if arguments.has("json") and arguments.has("quiet"):
        raise ConfigError("--quiet: got --json too; rule: one form of output")
    found = exported(arguments)
    from memcalc.output.files import put_notes, put_stdout, to_json, write_text

    if not arguments.has("quiet"):
        put_notes(notes_of(found))
        put_notes((f"{option}: {why}" for option, why in found.lacking), "not expressed")
    out = arguments.text("out")
    text = to_json(plain(found)) if arguments.wants_json else found.text
    if out is None or out == "-":
        put_stdout(text)
    else:
        write_text(out, text)
    return 0


def exported(arguments: Arguments) -> Exported:
    """The export of a command's arguments. Raises ConfigError."""
    name = arguments.text("format")
    if name is None:
        valid = ", ".join(dict.fromkeys(tool for tool, _ in FORMATS))
        raise ConfigError(f"export: got no --format; valid: {valid}")
    typed(BY_NAME["format"], name)
    form = format_of(name, arguments.text("tool-version"))
    _with_stack(arguments, name)
    request = request_of(arguments)
    if request.setup.base not in form.tool.stacks:
        raise ConfigError(
            f"stack: got {request.setup.stack} with --format {name}; valid: "
            f"{', '.join(form.tool.stacks)}"
        )
    sets = parse_overrides(_sets(arguments)).model
    facts = facts_of(
        request.model_name, request.config, request.setup, request.parallel, request.kernels, sets
    )
    form.tool.check(facts)
    document = written(form.tool, facts)
    lacking = unexpressed(form.tool, document, facts)
    return Exported(form, facts, document, form.text(document), tuple(_words(lacking)))


def _with_stack(arguments: Arguments, name: str) -> None:
    """Add --stack where it is not stated: the code the tool runs for this model and layout."""
    if (path := arguments.text("config")) is not None:
        from memcalc.cli.runfile import merge_run_file

        merge_run_file(arguments, path)
        del arguments.options["config"]
    if "stack" not in arguments.options and len(arguments.positionals) == 1:
        config = load_model(arguments.positionals[0])
        arguments.options["stack"] = stack_for(name, config, layout_stated(arguments))


def _sets(arguments: Arguments) -> list[str]:
    stated = arguments.options.get("set")
    return stated if isinstance(stated, list) else []


def _words(lacking: list[Unexpressed]) -> list[tuple[str, str]]:
    """Each option an import lacks, as it is typed, and why; one that cannot be typed by its field."""
    found = []
    values = {one.field: one.value for one in lacking}
    for one in lacking:
        if one.field == "model":
            found.append((f"--model {one.value}", one.why))
            continue
        beside = {"recompute_layers": values.get("recompute_layers")}
        options = options_of_fields({one.field: one.value, **beside}, defaults=True)
        if options:
            found.append((words_text(options), one.why))
    return found


def notes_of(found: Exported) -> list[str]:
    """What a reader must know of the settings."""
    facts = found.facts
    return [
        f"keys of {found.form.tool.known}; {_YOURS}",
        f"{facts['gpus']} GPUs, stack {facts['stack']}: memcalc estimate shows what these settings take",
    ]


def plain(found: Exported) -> dict[str, Any]:
    """The JSON object."""
    from memcalc import __version__

    facts = found.facts
    return {
        "schema": 1,
        "memcalc": __version__,
        "format": found.form.tool.name,
        "read_in": found.form.tool.known,
        "model": {"name": facts.config.name},
        "stack": facts["stack"],
        "gpus": facts["gpus"],
        "settings": found.document,
        "text": found.text,
        "unexpressed": [{"option": option, "why": why} for option, why in found.lacking],
        "notes": notes_of(found),
    }
