"""Options of the phases outside the step: rows of the one table (`cli/options.py`), and what they say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from memcalc.cli.option import ESTIMATE, Option
from memcalc.errors import ConfigError
from memcalc.units import parse_count

if TYPE_CHECKING:
    from memcalc.cli.parse import Arguments
    from memcalc.engine.phases.program import Wanted

PHASE_OPTIONS: Final = (
    Option("phase", "text", "Output",
           "Also the peak of loading, evaluation, saving, or all of them and the first step", "train",
           commands=ESTIMATE, choices=("train", "load", "eval", "save", "all")),
    Option("load-from", "text", "Output",
           "What the checkpoint of a packed model holds: 16bit (packed on the way) or prequantised",
           "16bit", commands=ESTIMATE, choices=("16bit", "prequantised")),
    Option("load-by", "text", "Output",
           "How weights arrive: direct (each once; sharded: block by block), copy (a state dict read "
           "whole and copied) or rank0 (sent by rank 0; --fsdp)",
           "direct", commands=ESTIMATE, choices=("direct", "copy", "rank0")),
    Option("eval-batches", "count", "Output",
           "Batches of an evaluation whose logits stay on the GPU till the last (transformers' Trainer: "
           "eval_accumulation_steps, else all)",
           "none stay", commands=ESTIMATE),
    Option("save-as", "text", "Output",
           "What is written: full (gathered on rank 0's host), full-gpu, sharded, adapter, merged",
           "adapter with one, sharded with stages, else full", commands=ESTIMATE,
           choices=("full", "full-gpu", "sharded", "adapter", "merged")),
)  # fmt: skip
#: Options and the phase they are of.
_OF: Final = {
    "load-from": "load", "load-by": "load", "eval-batches": "eval", "save-as": "save",
}  # fmt: skip


def wanted(arguments: Arguments, phase: str) -> Wanted:
    """How the phases run, as stated. Raises ConfigError where an option is of a phase not asked for."""
    from memcalc.engine.phases.program import Wanted

    for name, of in _OF.items():
        if name in arguments.options and phase not in (of, "all"):
            raise ConfigError(
                f"--{name}: got it with --phase {phase}; rule: of phase {of}; nearest valid: --phase {of}"
            )
    text = arguments.text("eval-batches")
    batches = 0 if text is None else parse_count(text, "--eval-batches")
    return Wanted(
        prequantised=arguments.text("load-from") == "prequantised",
        load_by=arguments.text("load-by") or "direct",
        batches=batches,
        save_as=arguments.text("save-as") or "",
    )
