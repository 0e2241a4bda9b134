"""Cases A: what a planner must recommend, read off the first row of `memcalc advise`.

What is read are the ways by which the recommended layout divides the model, in the words of its options.
Why each comes first is tested in tests/unit/test_worked_advice.py, from the parts of time and memory.
"""

from __future__ import annotations

from typing import Final

from benchmarks.worked.case import Case, Figure

PLAIN: Final = "llama-3.2-1b --gpu h100"
STATES_TOO_LARGE: Final = "llama-3.1-8b --gpu 4090 --seq 4k"
ACTIVATIONS_TOO_LARGE: Final = "llama-3.2-1b --gpu h100 --micro-batch 16"
WHOLE: Final = "llama-3.2-1b --cluster dgx-h100 --gpus 8"
DIVIDED: Final = "llama-2-13b --cluster hgx-h100 --gpus 8 --global-batch 32"
NO_NVLINK: Final = (
    "llama-2-7b --cluster benchmarks/worked/models/l40s-pcie.toml --gpus 8 --global-batch 32"
)
FAST_NETWORK: Final = "llama-65b --layers 20 --cluster dgx-h100 --gpus 32 --global-batch 256"
SLOW_NETWORK: Final = (
    "llama-7b --cluster aws-p3-16xlarge --gpus 32 --precision fp16-mixed --global-batch 128"
)
THOUSANDS: Final = "gpt-3-175b --cluster dgx-a100-80gb --gpus 2048 --global-batch 2048"

_CHANGE: Final = "advice[0].change.split()"
_SAME: Final = "[row.change.split() for row in advice if row.kind == 'same']"
_SHARDED: Final = (
    "max(row.tokens_per_s for row in advice if '--fsdp' in row.change or '--zero 3' in row.change)"
)
_THREE: Final = (
    "max(row.tokens_per_s for row in advice"
    " if all(way in row.change for way in ('--tp', '--pp', '--zero 1')))"
)


def _ask(words: str) -> tuple[str, ...]:
    """The command; --top shows what came behind the first, too."""
    return (f"advise {words} --top 60",)


def _divides(words: list[str]) -> str:
    """The ways in words as an expression: which of these options the first row has, joined."""
    named = ", ".join(f"'{word}'" for word in words)
    return f"' '.join(sorted(set([{named}]) & set({_CHANGE}))) or 'none of them'"


_WAYS: Final = ["--tp", "--pp", "--zero", "--fsdp", "--offload", "--recompute", "--peft"]

ADVICE: Final = (
    Case("A1", "one GPU and the model fits: plain", "training-notes", (
        Figure("costly ways that are recommended", "none of them", "", _ask(PLAIN), _divides(_WAYS)),
    )),
    Case("A2", "one GPU and it does not fit: offload, recomputation, adapters, in order of cost",
         "training-notes", (
        Figure("states too large: the first keeps the training as it is and offloads", "yes", "",
               _ask(STATES_TOO_LARGE), f"'--offload' in {_CHANGE}"),
        Figure("adapters are named, after it", "yes", "", _ask(STATES_TOO_LARGE),
               "any('--peft' in row.change for row in advice[1:])"),
        Figure("activations too large: recomputing before offloading", "yes", "",
               _ask(ACTIVATIONS_TOO_LARGE),
               "min(i for i, row in enumerate(advice) if '--recompute' in row.change)"
               " < min(i for i, row in enumerate(advice) if '--offload activations' in row.change)"),
    )),
    Case("A3", "one node", "training-notes", (
        Figure("one GPU holds the model: copies, with ZeRO-1 or 2", "--zero", "", _ask(WHOLE),
               _divides(_WAYS)),
        Figure("one does not: TP, ZeRO-3 and PP all fit", "yes", "", _ask(DIVIDED),
               f"all(any(way in row for row in {_SAME}) for way in ('--tp', '--pp', '--fsdp'))"),
        Figure("without NVLink: PP", "--pp", "", _ask(NO_NVLINK),
               _divides(["--tp", "--pp", "--fsdp"])),
    )),
    Case("A4", "many nodes, fast network: ZeRO-3 or 3D", "training-notes", (
        Figure("speed of ZeRO-3 over that of TP, PP and ZeRO-1 together", 1.0, "times", _ask(FAST_NETWORK),
               f"{_SHARDED} / {_THREE}", (0.75, 1.25),
               "said to be a choice of one or the other; here ZeRO-3 is slower by this"),
    )),
    Case("A5", "many nodes, slow network, little memory: DP + PP + TP + ZeRO-1", "training-notes", (
        Figure("the first divides by", "--pp --tp --zero", "", _ask(SLOW_NETWORK), _divides(_WAYS)),
        Figure("its stage", "1", "", _ask(SLOW_NETWORK),
               "advice[0].change.split('--zero ')[1].split()[0]"),
    )),
    Case("A6", "thousands of GPUs: 3D ahead of ZeRO-3", "training-notes", (
        Figure("the first divides by", "--pp --tp --zero", "", _ask(THOUSANDS), _divides(_WAYS)),
        Figure("its stage", "1", "", _ask(THOUSANDS),
               "advice[0].change.split('--zero ')[1].split()[0]"),
    )),
)  # fmt: skip
