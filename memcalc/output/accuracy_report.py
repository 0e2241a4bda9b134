"""REPORT.md: the accuracy report's object as one document, read from top to bottom by a stranger.

Figures are rounded here and nowhere else; every table is of the object alone.
Checked by: unit/test_report_accuracy_text.py, cli/test_report_accuracy.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from memcalc.output.accuracy_report_parts import (
    bands,
    classes_table,
    fitted,
    held,
    kernels,
    table,
    verdicts,
    worst,
)

Found = Mapping[str, Any]
#: Group of classes -> what is to know before its table.
LEADS: Final[Mapping[str, str]] = {
    "Exact: held against an oracle": (
        "The oracle runs the code itself (PyTorch's autograd, optimizers, sharding and compiler, "
        "transformers, PEFT, TRL's losses) "
        "on tensors without data and counts what is alive. Every configuration has a line with "
        "predicted, "
        "oracle's and textbook's bytes in `benchmarks/exact`; small models drawn at random, but "
        "for the "
        "classes that name published widths. No GPU is needed, and nothing of a GPU is shown: "
        "kernels' "
        "scratch, workspaces, the CUDA context and the allocator's cache are in the classes below."
    ),
    "A GPU of our own": (
        "Filled from records of `memcalc measure`, `memcalc verify` and `python -m "
        "benchmarks.gpu_sweep` in "
        "`benchmarks/measured`, with today's predictions. Until there are any, no figure is claimed."
    ),
    "Time on a CPU": (
        "Random small models timed by this project on a CPU, with rates measured on the same CPU "
        "and none "
        "of the models used for them; errors are of seconds, + is predicted too slow. The "
        "textbook's row takes "
        "40 % of the rate that products were measured to reach."
    ),
    "Memory of published runs": (
        "What others measured and printed with their setup (`benchmarks/published`): nothing "
        "about memory is "
        "fitted to a row. Rows of one setup share the weight of one measurement."
    ),
    "Speed of published runs": (
        "Tokens/s, step times, FLOP/s or utilisations, with default rates; + is predicted too fast."
    ),
    "Serving": "Requests through transformers and vLLM. The textbook's decoding reads weights "
    "and cache once a "
    "token at the datasheet's bandwidth.",
    "Fine-tuning with adapters": "Runs that train a part of the weights, a class of their own.",
}  # fmt: skip


def report_text(found: Found, pictures: Mapping[str, str]) -> str:
    """The document. pictures: name of a chart -> its path beside the document."""
    return "\n".join(_lines(found, pictures)).rstrip() + "\n"


def _lines(found: Found, pictures: Mapping[str, str]) -> Iterator[str]:
    yield from _opening(found, pictures)
    groups = dict.fromkeys(one["group"] for one in found["classes"])
    for group in groups:
        mine = [one for one in found["classes"] if one["group"] == group]
        yield from ("", f"## {group}", "", LEADS[group], "")
        yield from classes_table(mine)
        yield from _beside(group, mine, found, pictures)
    yield from ("", "## Kernels", "", *kernels(found["kernels"]))
    yield from ("", "## Does it fit?", "", *verdicts(found["verdicts"]))
    yield from ("", "## Printed bands", "", *bands(found["bands"]))
    yield from _picture(pictures, "bands", "Measured over predicted, each run with its band")
    yield from ("", "## Rows furthest out, and why", "", *worst(found["classes"]))
    yield from ("", "## Used for fitting, and therefore left out", "", *fitted(found["fitted"]))
    yield from ("", "## Held by tests", "", *held(found["held"]))
    yield from (
        "",
        "## The textbook",
        "",
        *_TEXTBOOK,
        "",
        "## To make this file again",
        "",
        *_AGAIN,
    )


def _opening(found: Found, pictures: Mapping[str, str]) -> Iterator[str]:
    counts = found["counts"]
    yield "# How far predictions lie from what is true"
    yield ""
    if found["short"]:
        yield "**Short form: every twenty-fourth published row. Its figures are no evidence.**"
        yield ""
    exact = [one for one in found["classes"] if one["group"].startswith("Exact")]
    equal, of = sum(one["equal"] for one in exact), sum(one["n"] for one in exact)
    yield (
        f"Every class of prediction of memcalc {found['memcalc']}, beside what the closed forms "
        "of the textbook "
        f"say of the same rows. {equal:,} of {of:,} figures that an oracle judges are equal to "
        "the byte; of "
        f"{counts['rows']} published rows {counts['rows'] - counts['left']} are priced, "
        f"{counts['left']} are "
        "not, each with its reason (`memcalc accuracy`). Errors are predicted / measured - 1 in "
        "%: median, mean, "
        "p90 (nine of ten are nearer) and worst of their size, bias with its sign, + too much "
        "memory or too "
        "fast."
    )
    yield from _picture(pictures, "classes", "Errors of every class, memcalc and textbook")


def _picture(pictures: Mapping[str, str], name: str, said: str) -> list[str]:
    return ["", f"![{said}]({pictures[name]})"] if name in pictures else []


def _beside(
    group: str, mine: Sequence[Found], found: Found, pictures: Mapping[str, str]
) -> Iterator[str]:
    """Splits and pictures of a group."""
    if group.startswith("Exact"):
        yield from _picture(pictures, "exact", "Predicted over oracle's bytes")
    if group.startswith("Memory"):
        yield from ("", "Everything stated, by what was read:", "", *table("kind", found["kinds"]))
    for one in mine:
        if len(one["parts"]) > 1:
            about = f"{one['name'][0].upper()}{one['name'][1:]}, by {_by(group)}:"
            yield from ("", about, "", *table(_by(group), one["parts"]))
    if group.startswith("Speed"):
        said = "Evaluated rows of training, by GPU:"
        yield from ("", said, "", *table("GPU", found["devices"]))
        yield from _picture(pictures, "published", "Published runs, predicted against measured")


def _by(group: str) -> str:
    return "run" if group.startswith("Time") else "source"


_TEXTBOOK: Final = (
    "What one would use otherwise, `memcalc/accuracy/textbook.py`:",
    "",
    "- Parameters: 12 layers h^2 + v h. Every other form is given the true count.",
    "- States: 16 bytes a parameter (mixed precision or fp32 with Adam; 8 where every state is "
    "in 16 bit; less for "
    "a moment the optimizer does not keep), divided by tensor and pipeline ranks and as ZeRO's "
    "stages divide them "
    "(arXiv:1910.02054).",
    "- Activations: 34 s b h a layer, with eager attention 5 a s^2 b more, 2 s b h where a layer "
    "is computed "
    "again, 4 s b h (1 + v / h) for embedding and head (arXiv:2205.05198); doubled in fp32.",
    "- Time: 6 FLOPs a parameter and token at 40 % of the dense peak (active parameters of "
    "mixtures).",
    "- Serving: 2 bytes a parameter (packed weights their bits), 2 x 2 x layers x key/value "
    "heads x head width a "
    "cached position; decoding reads both once a token at the datasheet's bandwidth.",
    "",
    "Their figures are of memory a GPU's tensors take: context, cache of the allocator and "
    "communicators are "
    "not in them, where the measured figure has them.",
)
_AGAIN: Final = (
    "    memcalc accuracy --report            this file and its pictures: the same bytes every time",
    "    python -m benchmarks.exact_records   the records of exact classes (torch, transformers, "
    "peft, bitsandbytes)",
    "    python -m benchmarks.time_bands      the printed bands",
)
