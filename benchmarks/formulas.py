"""docs/formulas.md, written from the ledger: operators, states and exchanges with their formulas.

    python -m benchmarks.formulas            write docs/formulas.md
    python -m benchmarks.formulas --check    exit 1 where the page is not what would be written

Nothing in the page is typed by hand but its prose: shapes, FLOPs and kept tensors are the rows of
`memcalc explain`, bytes a parameter those of its leaves, exchanges those that a layout's time is made of.
Checked by: tests/unit/test_formulas.py.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from memcalc.engine.device_side import device_of
from memcalc.engine.explain import explain
from memcalc.engine.explanation import Explanation, Row
from memcalc.engine.make_plan import plan_of
from memcalc.engine.parallel.ranks import chunk_plan
from memcalc.engine.states import states
from memcalc.engine.timing.exchanges import Exchange, collectives_of, exchanges_of
from memcalc.inputs.models import load_model
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.rates import rates_of
from memcalc.inputs.training import OPTIMIZERS, PRECISIONS, TrainingSetup

PAGE = Path(__file__).resolve().parents[1] / "docs" / "formulas.md"
#: Two sequences, so that b stays a letter; the formulas hold for every size.
SETUP: dict[str, Any] = {"precision": "bf16", "seq_len": 4096, "micro_batch_size": 2}
BLOCKS = (
    ("A dense block", "llama-3.1-8b", "dense"),
    ("A block with experts", "mixtral-8x7b", "sparse"),
    ("A block with latent attention, experts and shared experts", "deepseek-v2-lite", "sparse"),
)
LETTERS = {
    "b": "sequences of a micro-batch", "s": "tokens of a sequence", "h": "hidden size",
    "a": "query heads", "k": "key and value heads", "d": "width of a head (latent: of a query)",
    "f": "width of the MLP", "V": "vocabulary", "E": "experts", "t": "experts a token goes to",
    "m": "width of an expert", "n": "width of the shared experts", "R": "token rows: b s t",
    "c": "width of the latent", "d_n": "width of a head without position",
    "d_r": "width of a head with rotary position", "d_v": "width of a value head",
    "a_c": "query heads of a rank of Ulysses", "R_s": "token rows a rank sends to experts",
}  # fmt: skip
#: Layouts whose exchanges are listed, each of eight ranks.
LAYOUTS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("DDP", "llama-3.1-8b", {"dp": 8}),
    ("ZeRO 1 (stack deepspeed)", "llama-3.1-8b", {"dp": 8, "zero": 1}),
    ("ZeRO 2 (stack deepspeed)", "llama-3.1-8b", {"dp": 8, "zero": 2}),
    ("ZeRO 3 (stack deepspeed)", "llama-3.1-8b", {"dp": 8, "zero": 3}),
    ("FSDP2", "llama-3.1-8b", {"dp": 8, "fsdp": True}),
    ("HSDP, shards of 4", "llama-3.1-8b", {"dp": 8, "fsdp": True, "shard": 4}),
    ("tensor parallel", "llama-3.1-8b", {"tp": 8, "sp": False}),
    ("tensor and sequence parallel", "llama-3.1-8b", {"tp": 8, "sp": True}),
    ("context parallel, ring", "llama-3.1-8b", {"cp": 8}),
    ("context parallel, Ulysses", "llama-3.1-8b", {"cp": 8, "cp_method": "ulysses"}),
    ("expert parallel and FSDP2", "mixtral-8x7b", {"dp": 8, "ep": 8, "fsdp": True}),
    ("pipeline of 8 stages, a middle one", "llama-3.1-8b", {"pp": 8}),
)
_NEEDS = {
    "dgrad": "gradient of the input", "wgrad": "gradient of the weight",
    "both": "both gradients", "run": "held by the running code",
}  # fmt: skip


def page() -> str:
    """The whole page."""
    parts = [
        "# Formulas\n\nWritten by `python -m benchmarks.formulas` from the ledger that every estimate is "
        "made of; a test writes it again\nand compares. `memcalc explain MODEL` prints the same rows for "
        "any model, setup and layout, with numbers.\n",
        _legend(),
        "Setup: stack `torch`, precision `bf16` (2 bytes an element), flash attention, nothing recomputed. "
        "FLOPs are those of\nproducts and attention (a multiply and an add are two); the full square "
        "of attention is counted. An operator\nkeeps what its backward reads; a tensor that several read is "
        "under the first.\n",
    ]
    for title, model, kind in BLOCKS:
        parts.append(_block(title, model, kind))
    parts += [_outside(), _recomputed(), _precisions(), _states(), _exchanges()]
    return "\n".join(parts)


def _legend() -> str:
    rows = [f"| {letter} | {said} |" for letter, said in LETTERS.items()]
    return "\n".join(["| letter | |", "|---|---|", *rows, ""])


def _explained(model: str, **more: Any) -> Explanation:
    return explain(model, TrainingSetup(**{**SETUP, **more}))


def _block(title: str, model: str, kind: str) -> str:
    rows = [row for row in _explained(model).rows if row.kind == kind]
    return _ledger(f"## {title}: {model}", rows)


def _outside() -> str:
    rows = [row for row in _explained("llama-3.1-8b").rows if row.kind == "once"]
    return _ledger("## Outside the blocks: llama-3.1-8b", rows)


def _ledger(heading: str, rows: list[Row]) -> str:
    lines = [heading, "", "| operator | input -> output | parameters | FLOPs forward | of the input's "
             "gradient | of the weight's |", "|---|---|---|---|---|---|"]  # fmt: skip
    for row in rows:
        flops = [row.flops[kind].formula for kind in ("forward", "dgrad", "wgrad")]
        cells = [row.params.formula, *flops]
        shapes = f"{row.input_shape} -> {row.output_shape}"
        lines.append(f"| {row.op} | {shapes} | {' | '.join(map(_or_dash, cells))} |")
    lines += ["", "| operator | saved, bytes | what is kept, for which gradient |", "|---|---|---|"]
    lines += [f"| {row.op} | {row.saved.formula} | {_kept(row)} |" for row in rows if row.kept]
    total = _sum(rows)
    return "\n".join([*lines, f"| **all** | **{total}** | |", ""])


def _kept(row: Row) -> str:
    """Every kept tensor: its bytes, the kernel that made it, whose gradient needs it."""
    return "; ".join(
        f"{one.formula} of `{one.made_by.lstrip('_')}` ({_NEEDS[one.needed_by]})"
        for one in row.kept
    )


def _sum(rows: Iterable[Row]) -> str:
    sizes = [row.saved.size for row in rows]
    total = sizes[0]
    for size in sizes[1:]:
        total = total + size
    return str(total)


def _or_dash(formula: str) -> str:
    return "-" if formula == "0" else formula


def _recomputed() -> str:
    """What a dense block keeps by what backward computes again."""
    lines = [
        "## A dense block by what is recomputed",
        "",
        "| recompute | saved, bytes |",
        "|---|---|",
    ]
    for name in ("none", "selective", "sac-attention", "sac", "full"):
        found = _explained("llama-3.1-8b", recompute=name)
        rows = [row for row in found.rows if row.kind.startswith("dense")]
        lines.append(f"| {name} | {_sum(rows)} |")
    return "\n".join([*lines, ""])


def _precisions() -> str:
    lines = ["## A dense block by precision", "", "Autocast keeps the 16-bit copies of weights that it makes "
             "(terms without s).", "", "| precision | saved, bytes |", "|---|---|"]  # fmt: skip
    for name in PRECISIONS:
        rows = [
            row for row in _explained("llama-3.1-8b", precision=name).rows if row.kind == "dense"
        ]
        lines.append(f"| {name} | {_sum(rows)} |")
    return "\n".join([*lines, ""])


def _states() -> str:
    """Bytes a parameter of each state, by precision and optimizer."""
    lines = [
        "## Model states: bytes a parameter", "",
        "Of llama-3.1-8b, bytes over its 8,030,261,248 parameters. Adafactor keeps a row "
        "and a column for each matrix,\n8-bit AdamW scales for each 256 elements, Muon momentum for "
        "matrices and AdamW's states for the rest; a\nscalar a tensor stays below the last digit.", "",
        "| precision | optimizer | parameters | gradients | optimizer states | master copies | all |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]  # fmt: skip
    for precision in PRECISIONS:
        for optimizer in OPTIMIZERS if precision in ("bf16-mixed", "bf16") else ("adamw",):
            lines.append(_state_row(precision, optimizer))
    return "\n".join([*lines, ""])


def _state_row(precision: str, optimizer: str) -> str:
    setup = TrainingSetup(**{**SETUP, "precision": precision, "optimizer": optimizer})
    plan = plan_of(load_model("llama-3.1-8b"), setup)
    structure, runs = plan.structure(plan.keeps_gradients)
    found = states(structure, runs, plan.optimizer, plan.values, plan.strategy)
    sizes = (found.parameter_bytes, found.gradient_bytes, found.optimizer_bytes, found.master_bytes)
    cells = [f"{size / found.parameters:.4g}" for size in (*sizes, sum(sizes))]
    return f"| {precision} | {optimizer} | {' | '.join(cells)} |"


def _exchanges() -> str:
    """Every exchange of eight ranks in a layout."""
    lines = [
        "## Exchanges of eight ranks", "",
        "Of one micro-batch and step in `bf16` (stack `deepspeed`: `bf16-mixed`). `bytes of a call` is the "
        "whole that is summed,\ngathered or scattered (of a send and an all-to-all this rank's own); a "
        "rank sends (n-1)/n of it, twice that\nfor an all-reduce. Formulas are those of a layer's "
        "operator, with the letters of one rank's share; numbers are\nof exchanges between ranks that hold "
        "the same weights,\nwith bytes a parameter of the model.", "",
    ]  # fmt: skip
    for title, model, layout in LAYOUTS:
        lines += [f"### {title}", "", "| axis | exchange | when | calls | bytes of a call | beside compute |",
                  "|---|---|---|--:|---|---|", *_exchange_rows(model, layout, title), ""]  # fmt: skip
    return "\n".join(lines)


def _exchange_rows(model: str, layout: dict[str, Any], title: str) -> list[str]:
    stack = {"stack": "deepspeed", "precision": "bf16-mixed"} if "deepspeed" in title else {}
    batches = {"grad_accum_steps": layout.get("pp", 1)}
    setup = TrainingSetup(**{**SETUP, **stack, **batches})
    plan = plan_of(load_model(model), setup, None, ParallelPlan(**layout))
    device = device_of("h100-80gb")
    assert device.gpu is not None
    chunk = chunk_plan(plan, plan.parallel.pp // 2)
    structure, _ = chunk.structure(chunk.keeps_gradients)
    formulas = {
        (one.axis, one.kind, one.direction, one.size.value(chunk.values)): str(one.size)
        for _, _, one, _ in collectives_of(structure)
    }
    whole, runs = plan.whole.structure(plan.keeps_gradients)
    elements = states(whole, runs, plan.optimizer, plan.whole.values).parameters
    calls: Counter[tuple[str, ...]] = Counter()
    for one in exchanges_of(chunk, device, rates_of(device.gpu)):
        calls[_exchange_row(one, formulas, elements)] += one.calls
    return [
        f"| {axis} | {kind} | {when} | {count:,} | {size} | {beside} |"
        for (axis, kind, when, size, beside), count in calls.items()
    ]


def _exchange_row(one: Exchange, formulas: dict[Any, str], elements: int) -> tuple[str, ...]:
    """A row's cells but for the number of calls: equal exchanges of several operators are one row."""
    formula = formulas.get((one.axis, one.kind, one.when, one.call_bytes))
    if formula is None:
        each = one.call_bytes / elements
        formula = f"{one.call_bytes:,.0f} ({each:.3g} a parameter)"
    beside = "yes" if one.overlaps else "no"
    return one.axis, one.kind.replace("_", "-"), f"{one.when}, a {one.per}", formula, beside


def unknown_letters(text: str) -> set[str]:
    """Letters of formulas that the legend does not have; a formula is what stands in a table's cell."""
    cells = [
        cell for line in text.splitlines() if line.startswith("| ") for cell in line.split("|")
    ]
    formulas = [cell for cell in cells if re.fullmatch(r"[\s\d+^*()a-zA-Z_/,>-]*", cell)]
    return {
        word
        for cell in formulas
        if re.match(r"^ \*?\*?\d+ [a-zA-Z]", cell)
        for word in re.findall(r"[a-zA-Z_]+", cell)
    } - set(LETTERS)


def main(words: list[str]) -> int:
    """Write the page, or with --check say whether it is the one that would be written."""
    text = page()
    if "--check" in words:
        same = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text
        print("docs/formulas.md is up to date" if same else "docs/formulas.md is stale")
        return 0 if same else 1
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
