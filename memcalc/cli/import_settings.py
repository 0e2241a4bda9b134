"""memcalc import FILE|"ARGS": the estimate of a setup that another tool's settings state.

Options of `estimate` may stand beside the file and win over it: what a file does not say (a model, a GPU,
a sequence length) is stated so. Every key is accounted for: read, left to a Trainer, taken as something
near, not modelled, without effect, or not known. Output and exit status are those of `estimate`.
Checked by: cli/test_import.py, property/test_interop.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from memcalc.cli.deliver import estimate_dict
from memcalc.cli.estimate import DOES_NOT_FIT, estimated
from memcalc.cli.interop_words import (
    command_of,
    merged,
    options_of_fields,
    plainest,
    without,
)
from memcalc.cli.overrides import parse_overrides
from memcalc.cli.parse import Arguments, Value, check_positionals
from memcalc.cli.request import layout_stated, request_of, setup_fields
from memcalc.errors import ConfigError
from memcalc.inputs.files import read_limited, user_path
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.models import load_model
from memcalc.inputs.parallel import stated as stated_of
from memcalc.planning.interop.formats import parsed
from memcalc.planning.interop.rows import MEANINGS, NO_EFFECT, READ, Reading, Remark
from memcalc.planning.interop.texts import MOST_BYTES
from memcalc.planning.interop.tool import Tool, read

if TYPE_CHECKING:
    from memcalc.output.console import Page

#: Options that are no part of the setup.
_OUTPUTS: Final = ("format", "model", "json", "quiet", "out", "save", "debug")
_SHOWN: Final = 72


class Imported(NamedTuple):
    """What a document states: the model, the options of `estimate`, and what was made of every key."""

    tool: Tool
    source: str
    model: str
    options: dict[str, Value]
    remarks: tuple[Remark, ...]

    @property
    def command(self) -> str:
        """The `memcalc estimate` command that gives the same figures."""
        return command_of(self.model, self.options)


def run(arguments: Arguments) -> int:
    """Import, estimate, write the result, and return 0 when it fits or no GPU was named, else 3."""
    if arguments.has("json") and arguments.has("quiet"):
        raise ConfigError("--quiet: got --json too; rule: one form of output")
    found = imported(arguments)
    options = dict(found.options)
    if (path := arguments.text("save")) is not None:
        options["save"] = path
    request = request_of(Arguments("estimate", [found.model], options))
    result = estimated(request, request.device(Arguments("estimate", [], options)))
    _deliver(arguments, found, request, result)
    return DOES_NOT_FIT if result.fits is False else 0


def imported(arguments: Arguments) -> Imported:
    """What the file and the options beside it state. Raises ConfigError."""
    check_positionals(arguments)
    data, source = _source(arguments.positionals[0])
    tool, document = parsed(data, source, arguments.text("format"))
    beside = without(arguments.options, _OUTPUTS)
    stated = {**setup_fields(arguments), **stated_of(layout_stated(arguments))}
    config = _model_stated(arguments)
    if config is None and not any("MODEL" in row.options for row in tool.rows):
        raise ConfigError(
            f"import: got no model; rule: --model MODEL, which {tool.name}'s settings do not name"
        )
    reading = read(tool, document, Reading(config, stated))
    model = arguments.text("model") or reading.model
    if model is None:
        raise ConfigError(
            "import: got a model that is no profile of memcalc's; rule: --model MODEL, as a "
            "config.json"
        )
    file = options_of_fields(plainest(_own(reading, arguments)))
    return Imported(tool, source, model, merged(file, beside), tuple(reading.remarks))


def _own(reading: Reading, arguments: Arguments) -> dict[str, Any]:
    """The document's fields; a model that is stated is not changed by it."""
    if arguments.text("model") is None:
        return reading.fields
    return {name: v for name, v in reading.fields.items() if not name.startswith("model.")}


def _model_stated(arguments: Arguments) -> ModelConfig | None:
    name = arguments.text("model")
    if name is None:
        return None
    sets = arguments.options.get("set")
    overrides = parse_overrides(sets if isinstance(sets, list) else [])
    return overrides.apply_to_model(load_model(name))


def _source(text: str) -> tuple[bytes, str]:
    """The bytes of a file, or the text itself where it is arguments; and what to call it."""
    plain = text.strip()
    if plain.startswith("--") or "\n" in plain or " --" in plain:
        if len(plain) > MOST_BYTES:
            raise ConfigError(f"import: got {len(plain)} characters; rule: at most {MOST_BYTES}")
        return plain.encode("utf-8", "replace"), "arguments"
    path = user_path(text)
    if path.is_dir():
        raise ConfigError(
            f"import: got the directory '{text}'; rule: a file, or arguments in quotes"
        )
    return read_limited(path, MOST_BYTES, "import"), path.name


def _deliver(arguments: Arguments, found: Imported, request: Any, result: Any) -> None:
    from memcalc.cli.deliver import deliver
    from memcalc.output.estimate_text import estimate_page, quiet_line
    from memcalc.output.files import put_notes

    def plain() -> dict[str, Any]:
        return {**estimate_dict(request, result), "import": plain_import(found)}

    def page(sheet: Page) -> None:
        sheet.line(f"{found.source}, as {found.tool.name}'s settings; the same estimate:")
        sheet.line(found.command)
        sheet.line()
        estimate_page(sheet, result, [], dict(request.stated))

    quiet = arguments.has("quiet")
    out = arguments.text("out") or ""
    if not quiet:
        put_notes(notes_of(found))
    deliver(arguments, plain, page, quiet_line(result) if quiet else None)
    if not quiet and not arguments.wants_json and not out.lower().endswith(".json"):
        put_notes(result.notes)
        put_notes(result.assumptions, "assumed")


def notes_of(found: Imported) -> Iterator[str]:
    """A line for every key that was not simply read; keys without effect share one."""
    idle = [remark.key for remark in found.remarks if remark.kind == NO_EFFECT]
    for remark in found.remarks:
        if remark.kind not in (READ, NO_EFFECT):
            why = f": {remark.why}" if remark.why else ""
            yield f"{remark.key[:_SHOWN]}: {remark.kind}{why}"
    if idle:
        yield f"no effect on memory or time: {', '.join(key[:_SHOWN] for key in idle)}"


def plain_import(found: Imported) -> dict[str, Any]:
    """The JSON object of what was made of the document."""
    return {
        "source": found.source,
        "format": found.tool.name,
        "read_in": found.tool.known,
        "command": found.command,
        "keys": [remark._asdict() for remark in found.remarks],
        "meanings": MEANINGS,
    }
