"""Options of parameter-efficient fine-tuning: rows of the one table (`cli/options.py`).

Their fields are those of PeftSetup; `setup_of` makes one of what was stated.
"""

from __future__ import annotations

from typing import Any, Final

from memcalc.cli.option import LAYOUT, Option
from memcalc.errors import ConfigError, unknown
from memcalc.inputs.peft import DTYPES, METHODS, PeftSetup
from memcalc.units import parse_count

#: mfu's conventions count every weight as trained.
_COMMANDS: Final = tuple(command for command in LAYOUT if command != "mfu")
PEFT_OPTIONS: Final = (
    Option("peft", "peft", "Training",
           "What trains instead of every weight: lora, bitfit, freeze:N (the last N layers train), ...",
           "every weight", "peft.method", commands=_COMMANDS),
    Option("lora-rank", "count", "Training", "Rank of low-rank matrices", "8", "peft.rank",
           commands=_COMMANDS),
    Option("lora-targets", "names", "Training",
           "Linears with an adapter by their names in the model's code, as q_proj,v_proj, or "
           "all-linear; with freeze:N, those that train", "PEFT's for the family", "peft.targets",
           commands=_COMMANDS),
    Option("lora-dropout", "number", "Training", "Dropout before low-rank matrices", "0",
           "peft.dropout", commands=_COMMANDS),
    Option("lora-dtype", "text", "Training", "Dtype of adapters", "fp32, as PEFT makes them",
           "peft.dtype", commands=_COMMANDS, choices=DTYPES),
    Option("weights", "name", "Training",
           "Dtype of frozen weights, as bf16 under bf16-mixed; infer: a format of `memcalc list weights`",
           "the precision's; infer: bf16", "peft.weights", commands=(*_COMMANDS, "infer")),
)  # fmt: skip


def method_of(text: str) -> tuple[str, int | None]:
    """`freeze:2` as ("freeze", 2). Raises ConfigError."""
    word, colon, layers = text.partition(":")
    if word not in METHODS:
        raise unknown("--peft", word, [*(name for name in METHODS if name != "freeze"), "freeze:N"])
    if not colon:
        return word, None
    if word != "freeze":
        raise ConfigError(f"--peft: got {text!r}; rule: only freeze:N takes a number of layers")
    return word, parse_count(layers, "--peft freeze:N")


def setup_of(found: dict[str, Any]) -> dict[str, Any]:
    """Fields of TrainingSetup with those named peft.* made into its field peft. Raises ConfigError."""
    stated = {name: value for name, value in found.items() if name.startswith("peft.")}
    if not stated:
        return found
    if "peft.method" not in stated:
        field = next(iter(stated))
        name = next(option.flag for option in PEFT_OPTIONS if option.field == field)
        raise ConfigError(f"{name}: got no --peft; rule: beside it, as --peft lora")
    plain = {name: value for name, value in found.items() if name not in stated}
    own = {name.removeprefix("peft."): value for name, value in stated.items()}
    return {**plain, "peft": PeftSetup(**own)}
