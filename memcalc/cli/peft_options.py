"""Options of parameter-efficient fine-tuning: rows of the one table (`cli/options.py`).

Their fields are those of PeftSetup; `setup_of` makes one of what was stated.
"""

from __future__ import annotations

from typing import Any, Final

from memcalc.cli.option import LAYOUT, MEASURE, Option
from memcalc.errors import ConfigError, unknown
from memcalc.inputs.peft import DTYPES, KINDS, METHODS, PeftSetup
from memcalc.units import parse_count

#: mfu's conventions count every weight as trained.
_COMMANDS: Final = tuple(command for command in LAYOUT if command != "mfu")
#: Of methods that the harness's decoder runs too.
_ALSO_RUN: Final = (*_COMMANDS, *MEASURE)
PEFT_OPTIONS: Final = (
    Option("peft", "peft", "Training",
           "What trains instead of every weight: lora, bitfit, freeze:N (the last N layers train), ...",
           "every weight", "peft.method", commands=_ALSO_RUN),
    Option("lora-rank", "count", "Training",
           "Rank of low-rank matrices; of adalora the rank it begins with", "8, adalora 12", "peft.rank",
           commands=_ALSO_RUN),
    Option("lora-targets", "names", "Training",
           "Linears with an adapter by their names in the model's code, as q_proj,v_proj, or "
           "all-linear; with freeze:N, those that train", "PEFT's for the family", "peft.targets",
           commands=_ALSO_RUN),
    Option("lora-dropout", "number", "Training", "Dropout before low-rank matrices", "0",
           "peft.dropout", commands=_ALSO_RUN),
    Option("lora-dtype", "text", "Training", "Dtype of adapters", "fp32, as PEFT makes them",
           "peft.dtype", commands=_ALSO_RUN, choices=DTYPES),
    Option("virtual-tokens", "count", "Training",
           "Virtual tokens of prefix, prompt and p-tuning", "20", "peft.virtual_tokens",
           commands=_COMMANDS),
    Option("prefix-projection", "flag", "Training", "An MLP makes the prefix", "",
           "peft.projection", commands=_COMMANDS),
    Option("prompt-width", "count", "Training",
           "Hidden size of the MLP that makes virtual tokens or a prefix", "as wide as a token",
           "peft.encoder_width", commands=_COMMANDS),
    Option("adapter-kind", "text", "Training",
           "Bottleneck adapters: after attention and MLP, after the MLP, or beside it",
           "houlsby", "peft.kind", commands=_COMMANDS, choices=KINDS),
    Option("adapter-reduction", "number", "Training", "Hidden size over a bottleneck's width",
           "16, parallel 2", "peft.reduction", commands=_COMMANDS),
    Option("adapter-width", "count", "Training", "Width of a bottleneck",
           "by --adapter-reduction", "peft.width", commands=_COMMANDS),
    Option("weights", "name", "Training",
           "Dtype of frozen weights, as bf16 under bf16-mixed; infer: a format of `memcalc list weights`",
           "the precision's; infer: bf16", "peft.weights", commands=(*_ALSO_RUN, "infer")),
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
