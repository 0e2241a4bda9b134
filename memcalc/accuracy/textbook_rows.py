"""The closed forms asked about a published row: the figure memcalc is held against, by the textbook.

What the row states decides, and what memcalc assumed of the rest; parameters are memcalc's count, which
is the published one. Adapters' own states are neglected, as their weights are below 1 %.
Checked by: unit/test_report_accuracy_textbook.py.
"""

from __future__ import annotations

from typing import Final

from memcalc.accuracy import textbook
from memcalc.accuracy.adapters import with_adapters
from memcalc.accuracy.models import model_of
from memcalc.accuracy.pricing import MEMORY, Pair
from memcalc.accuracy.serving import is_serving
from memcalc.accuracy.serving import setup_of as serving_setup
from memcalc.accuracy.setups import express
from memcalc.inputs.hardware import Gpu, load_gpu
from memcalc.inputs.parallel import ParallelPlan, with_degrees

#: Bytes of a weight by the format it is served or frozen in; others have 2.
_PACKED: Final = {"gptq": 0.5, "gptq-8bit": 1.0, "nf4": 0.5, "nf4-plain": 0.5, "int8": 1.0}


def textbook_error(pair: Pair) -> float | None:
    """The closed form's error of a figure in percent, with the signs of Pair.error; None without a form."""
    if pair.parameters is None:
        return None
    said = _serving(pair) if is_serving(pair.row) else _training(pair)
    if said is None:
        return None
    error = pair.measured / said - 1 if pair.kind == "step_s" else said / pair.measured - 1
    return 100 * error


def textbook_fits(pair: Pair) -> bool | None:
    """Whether the run would fit by the closed forms; None where its GPU is not known."""
    if pair.parameters is None or pair.gpu is None or is_serving(pair.row):
        return None
    return _bytes(pair) <= load_gpu(pair.gpu)[0].total_bytes


def ways_of(plan: ParallelPlan) -> textbook.Ways:
    """A layout's degrees as the closed forms know them."""
    whole = with_degrees(plan)
    return textbook.Ways(
        stage=3 if whole.fsdp else whole.zero, shard=whole.shard_ranks, tp=whole.tp, pp=whole.pp,
        cp=whole.cp, sp=bool(whole.sp),
    )  # fmt: skip


def _bytes(pair: Pair) -> float:
    """States and activations of a rank of a training run."""
    stated = express(pair.row)
    assert pair.parameters is not None
    tuned = with_adapters(pair.row)
    held = textbook.peak_bytes(
        stated.config, stated.setup, pair.parameters, ways_of(stated.plan), 0.0 if tuned else None
    )
    peft = stated.setup.peft
    if peft is not None and peft.weights in _PACKED:
        held -= pair.parameters * (2.0 - _PACKED[peft.weights])
    return held


def _training(pair: Pair) -> float | None:
    if pair.what == MEMORY:
        return _bytes(pair)
    if pair.gpu is None:
        return None
    peak = _peak(load_gpu(pair.gpu)[0], pair.row.text("precision") or "bf16")
    if peak is None or pair.rate is None:
        return None
    if pair.kind == "tflops_per_gpu":
        return textbook.UTILISATION * peak
    if pair.kind in ("mfu_pct", "hfu_pct"):
        return 100 * textbook.UTILISATION
    count = pair.active or pair.parameters or 0
    if pair.kind == "step_s":
        return textbook.step_seconds(count, pair.rate * pair.predicted, peak)
    return 1 / textbook.step_seconds(count, 1, peak)


def _peak(gpu: Gpu, precision: str) -> float | None:
    """Dense datasheet rate that the row's products would run at."""
    name = precision.partition("-")[0]
    return gpu.peak_flops_per_s.get({"fp32": "tf32"}.get(name, name)) or gpu.peak_flops_per_s.get(
        "bf16"
    )


def _serving(pair: Pair) -> float | None:
    """Bytes of a GPU, or tokens/s of one: weights and cache are divided over tensor-parallel ranks."""
    config, _ = model_of(pair.row)
    setup, _ = serving_setup(pair.row)
    ranks = pair.row.whole("tp") or 1
    wide = _PACKED.get(setup.weights, 2.0)
    tokens = setup.context or config.max_position_embeddings
    assert pair.parameters is not None
    if pair.what == MEMORY:
        return textbook.serving_bytes(config, pair.parameters, tokens, setup.batch, wide) / ranks
    if pair.gpu is None:
        return None
    gpu = load_gpu(pair.gpu)[0]
    return textbook.decode_tokens_per_s(config, pair.parameters * wide, tokens, setup.batch, gpu)
