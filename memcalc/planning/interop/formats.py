"""The formats by name: which tool reads which text, and what a file's text is a settings file of.

Checked by: unit/test_interop_texts.py, cli/test_export.py, cli/test_import.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from memcalc.errors import ConfigError, unknown
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.parallel import ParallelPlan
from memcalc.planning.interop import accelerate, deepspeed, megatron, torchtitan
from memcalc.planning.interop.rows import Document
from memcalc.planning.interop.shell import (
    megatron_document,
    megatron_text,
    titan_document,
    titan_text,
)
from memcalc.planning.interop.texts import (
    read_json,
    read_toml,
    read_yaml,
    write_json,
    write_toml,
    write_yaml,
)
from memcalc.planning.interop.tool import Tool


class Format(NamedTuple):
    """A tool with the text it takes."""

    tool: Tool
    text: Callable[[Document], str]
    ending: str


FORMATS: Final[Mapping[tuple[str, str], Format]] = {
    ("deepspeed", ""): Format(deepspeed.TOOL, write_json, ".json"),
    ("accelerate", ""): Format(accelerate.TOOL, write_yaml, ".yaml"),
    ("torchtitan", "0.2"): Format(torchtitan.TOML, write_toml, ".toml"),
    ("torchtitan", "0.3"): Format(torchtitan.FLAGS, titan_text, ".txt"),
    ("megatron", ""): Format(megatron.TOOL, megatron_text, ".txt"),
}
NAMES: Final = tuple(dict.fromkeys(name for name, _ in FORMATS))
#: The version that is written where none is stated.
_NEWEST: Final = {"torchtitan": "0.3"}


def format_of(name: str, version: str | None = None) -> Format:
    """A format by its name and the tool's version. Raises ConfigError for one there is not."""
    if name not in NAMES:
        raise unknown("--format", name, NAMES)
    wanted = version or _NEWEST.get(name, "")
    if (name, wanted) not in FORMATS:
        valid = [one for tool, one in FORMATS if tool == name and one]
        rule = f"valid: {', '.join(valid)}" if valid else f"rule: {name} has one form"
        raise ConfigError(f"--tool-version: got {wanted!r}; {rule}")
    return FORMATS[name, wanted]


def stack_for(name: str, config: ModelConfig, layout: ParallelPlan) -> str:
    """Whose code a tool runs where no --stack is stated."""
    if name == "torchtitan":
        return torchtitan.stack_of(config)
    if name == "accelerate":
        if layout.tp > 1 or layout.cp > 1:
            return "torch"
        return "deepspeed" if layout.zero and not layout.fsdp else "hf"
    return name


def parsed(data: bytes, what: str, name: str | None) -> tuple[Tool, Document]:
    """A settings file's tool and document; the tool is told by the name's ending or by the text.

    Raises ConfigError in one line for what is no such file.
    """
    kind = name or _guessed(data, what)
    if kind not in NAMES:
        raise unknown("--format", kind, NAMES)
    if kind == "deepspeed":
        return deepspeed.TOOL, read_json(data, what)
    if kind == "accelerate":
        reads = read_json if what.lower().endswith(".json") else read_yaml
        return accelerate.TOOL, reads(data, what)
    if kind == "torchtitan" and what.lower().endswith(".toml"):
        return torchtitan.TOML, read_toml(data, what)
    text = _decoded(data, what)
    if kind == "megatron":
        return megatron.TOOL, megatron_document(text)
    document = titan_document(text)
    new = not document.keys().isdisjoint(("module", "config", "activation-checkpoint"))
    return (torchtitan.FLAGS if new else torchtitan.TOML), document


def _decoded(data: bytes, what: str) -> str:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{what}: got bytes that are no text; rule: UTF-8") from None
    if "\0" in text:
        raise ConfigError(f"{what}: got bytes that are no text; rule: UTF-8")
    return text


def _guessed(data: bytes, what: str) -> str:
    """The tool of a file: by its ending, else by words only one of them has."""
    ending = what.lower().rpartition(".")[2]
    if ending == "json":
        return "accelerate" if b'"distributed_type"' in data else "deepspeed"
    named = {"yaml": "accelerate", "yml": "accelerate", "toml": "torchtitan"}
    if ending in named:
        return named[ending]
    text = _decoded(data, what)
    if "--training." in text or "--parallelism." in text or "--module" in text:
        return "torchtitan"
    if "--num-layers" in text or "model-parallel-size" in text or "--micro-batch-size" in text:
        return "megatron"
    raise ConfigError(
        f"import: got {what[:60]!r}, which no ending or word tells; rule: --format "
        f"{', '.join(NAMES)}"
    )
