"""Rows of the option table for `train-time` and `mfu`: the run, its pace, what it costs."""

from __future__ import annotations

from typing import Any, Final

from memcalc.cli.option import SEVERAL, Option

#: What a stated utilisation is a share of: model FLOPs with the full or half the attention square, or
#: the FLOPs executed, recomputation included.
MFU_KINDS: Final = ("full-square", "causal", "executed")
_TIME: Final = ("train-time",)
_MFU: Final = ("mfu",)
_BOTH: Final = ("train-time", "mfu")


def _run(name: str, kind: str, said: str, default: str = "", **more: Any) -> Option:
    """What is trained on; both commands take it."""
    return Option(name, kind, "Run", said, default, commands=more.pop("commands", _BOTH), **more)


def _pace(name: str, kind: str, said: str, default: str = "", **more: Any) -> Option:
    """How fast it goes, where that is stated."""
    commands = more.pop("commands", _BOTH)
    return Option(name, kind, "Throughput", said, default, commands=commands, **more)


def _cost(name: str, said: str, default: str, commands: tuple[str, ...] = _TIME) -> Option:
    return Option(name, "number", "Cost", said, default, commands=commands)


RUN_OPTIONS: Final = (
    _run("tokens", "text", "Tokens to train on, decimal k, M, B, T, as 1.4T; optimal: 20 a parameter"),
    _run("samples", "decimal", "Samples of the data set, decimal, as 52k; with --epochs"),
    _run("epochs", "number", "Times the samples are seen", "1"),
    _run("sample-tokens", "number", "Mean tokens of a sample, which padding fills up to --seq", "seq"),
    _run("packed", "flag", "Samples are joined into full sequences, nothing is padded"),
    _run("hours", "number", "Hours the run took, from which its tokens/s", commands=_MFU),
    _pace("mfu", "number", "Utilisation in per cent, in place of the time model", "the time model",
          commands=_TIME),
    _pace("mfu-kind", "text", "What --mfu counts", "full-square", commands=_TIME,
          choices=MFU_KINDS),
    _pace("tokens-per-s", "number", "Tokens/s of all GPUs together"),
    _pace("tokens-per-s-per-gpu", "number", "Tokens/s of one GPU"),
    _pace("samples-per-s", "number", "Sequences/s of all GPUs together"),
    _pace("step-time", "number", "Seconds of an optimizer step"),
    _pace("peak", "number", "Dense TFLOP/s of one GPU", "the GPU's, in the matmuls' dtype"),
    _pace("tflops", "number", "Measured TFLOP/s of one GPU", commands=_MFU),
    _pace("reference-per-gpu", "number", "Tokens/s of one GPU of a run to compare with",
          commands=_MFU),
    _cost("price", "USD an hour of one GPU", "the GPU's dated range",
          (*_TIME, *SEVERAL, "advise", "search")),
    _cost("power-fraction", "Mean power of a GPU over its TDP", "1"),
    _cost("pue", "Power of the building over that of the GPUs", "1.1"),
    _cost("availability", "Share of the time that trains, above 0 to 1", "1, or from failures"),
    _cost("mtbf-hours", "Mean hours between failures of one GPU", "none fail"),
    _cost("node-mtbf-hours", "The same of one node", "none fail"),
    _cost("checkpoint-minutes", "Minutes training stands still for a checkpoint", "none"),
    _cost("restart-minutes", "Minutes from a failure to training again", "none"),
)  # fmt: skip
