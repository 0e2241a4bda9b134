"""Pricing rows of serving runs: memory and tokens/s of a batch of requests, predicted beside measured.

Tokens/s are those of whole requests, prompts included, as scripts that time `generate` print them. What
a row leaves open is named as assumed. `FITTED` names the source that the time of a launch was taken
from (benchmarks/serving_host.py): its rows are shown, and their rates do not count.
Checked by: published/test_serving.py, unit/test_accuracy_serving.py.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

from memcalc.accuracy.models import model_of
from memcalc.accuracy.notes import NotExpressedError
from memcalc.accuracy.pricing import BOTH, MEMORY, THROUGHPUT, UNITS, Left, Pair, Priced
from memcalc.accuracy.rows import Row
from memcalc.accuracy.setups import gpu_of
from memcalc.engine.serving.infer import infer
from memcalc.engine.serving.serving_results import ServingEstimate
from memcalc.errors import ConfigError
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.serving import ServingSetup

FITTED: Final = "Qwen-1 inference"
ENGINES: Final = {"hf": "transformers", "vllm": "vllm", "other:litgpt": "transformers"}
#: Part of a source's name -> what its release does that the engine's later code does not. transformers
#: 4.46: models/qwen2/modeling_qwen2.py, repeat_kv in every attention class.
#: Qwen's own modeling file (2023) returns a tuple of tensors, and generate keeps the one before.
OF_RELEASE: Final[Mapping[str, Mapping[str, Any]]] = {
    "Qwen2.5 inference": {"repeat_kv": True},
    "Qwen-1": {"cache": "tuple"},
}
#: Rates that do not count, and why.
UNSCORED: Final = {
    FITTED: "launch time was taken from this source",
    "litgpt": "litgpt's own loop and its bitsandbytes kernels are not described",
}
_FORMATS: Final = {
    ("bf16", ""): "bf16", ("fp16", ""): "fp16", ("int4", "gptq"): "gptq",
    ("int8", "gptq"): "gptq-8bit", ("nf4", "nf4"): "nf4-plain", ("nf4", "nf4-dq"): "nf4",
}  # fmt: skip
#: New tokens where a source speaks of hundreds.
_GENERATED: Final = 256


def is_serving(row: Row) -> bool:
    """Whether a row is of a run that serves, by an engine that is described."""
    return row.text("run") in ("decode", "load", "prefill") and row.text("stack") in ENGINES


def price_serving(rows: Iterable[Row], what: Collection[str] = BOTH) -> Priced:
    """Every row of a serving run, as pairs or with the reason it has none. what: figures wanted."""
    found = Priced([], [], [])
    for row in rows:
        if row.text("run") not in ("decode", "load", "prefill"):
            continue
        try:
            pairs = [pair for pair in serving_pairs(row) if pair.what in what]
        except NotExpressedError as error:
            found.unexpressed.append(Left(row, str(error)))
            continue
        found.pairs.extend(pairs)
        if not pairs:
            found.unscored.append(Left(row, "gives no figure that is asked for"))
    return found


def by_engine(pairs: Iterable[Pair]) -> dict[str, list[Pair]]:
    """The pairs of each engine, in the order of the rows."""
    found: dict[str, list[Pair]] = {}
    for pair in pairs:
        found.setdefault(ENGINES[pair.row.text("stack") or ""], []).append(pair)
    return found


def serving_pairs(row: Row) -> list[Pair]:
    """The pairs of one row. Raises NotExpressedError with the reason when it cannot be priced."""
    part = row.text("mem_rank")
    if part in ("weights", "kv-pool"):
        raise NotExpressedError(f"its memory is {part} alone, not a GPU's peak")
    config, assumed = model_of(row)
    setup, more = setup_of(row)
    ranks = row.whole("tp") or 1
    try:
        gpu, about_gpu = gpu_of(row)
        result = infer(config, setup, parallel=ParallelPlan(tp=ranks), gpu=gpu)
    except ConfigError as error:
        raise NotExpressedError(str(error)) from None
    said = (*assumed, *more, *about_gpu)
    return [*_memory(row, result, gpu, said), *_rate(row, result, gpu, said)]


def setup_of(row: Row) -> tuple[ServingSetup, list[str]]:
    """How a row serves, and what was assumed of it. Raises NotExpressedError."""
    stack, assumed = row.text("stack") or "", []
    if stack not in ENGINES:
        raise NotExpressedError(f"engine {stack!r} is not one this version describes")
    if stack.startswith("other:"):
        assumed.append(f"{stack.removeprefix('other:')} priced as transformers")
    key = (row.text("precision") or "bf16", row.text("quantizer") or "")
    if key not in _FORMATS:
        raise NotExpressedError(f"precision {' '.join(key).strip()} is not in this version")
    prompt, context = row.whole("seq"), row.whole("context")
    new = row.whole("generated_tokens")
    if prompt is None:
        prompt = 1
        assumed.append("prompt not stated: 1 token")
    if context is None:
        context = prompt + (new or _GENERATED)
        assumed.append(f"context not stated: {context}")
    elif new is not None and context <= new:
        context = prompt + new
    own = next((more for name, more in OF_RELEASE.items() if name in row.source), {})
    try:
        setup = ServingSetup(
            engine=ENGINES[stack], batch=row.whole("micro_batch") or 1, prompt=prompt,
            context=context, weights=_FORMATS[key], **own,
        )  # fmt: skip
    except ConfigError as error:
        raise NotExpressedError(str(error)) from None
    return setup, assumed


def _memory(
    row: Row, result: ServingEstimate, gpu: str | None, assumed: tuple[str, ...]
) -> list[Pair]:
    size = row.number("mem_gb")
    if size is None:
        return []
    unit, kind = row.text("mem_unit") or "unknown", row.text("mem_kind") or "unknown"
    said = (*assumed, *(["unit not stated: GiB"] if unit == "unknown" else []))
    predicted = result.memory.peak_allocated_bytes
    return [
        Pair(
            row,
            MEMORY,
            kind,
            predicted,
            round(size * UNITS[unit]),
            kind != "unknown",
            said,
            result.model.parameters,
            gpu,
        )  # fmt: skip
    ]


def _rate(
    row: Row, result: ServingEstimate, gpu: str | None, assumed: tuple[str, ...]
) -> list[Pair]:
    measured, rate = row.number("tokens_per_s_per_gpu"), result.time.tokens_per_s
    if measured is None or rate is None:
        return []
    each = rate / (row.whole("n_gpus") or row.whole("tp") or 1)
    why = next((said for name, said in UNSCORED.items() if name in row.source), None)
    assumed = (*assumed, *([f"not scored: {why}"] if why else []))
    return [
        Pair(
            row,
            THROUGHPUT,
            "tokens_per_s_per_gpu",
            each,
            measured,
            why is None,
            assumed,
            result.model.parameters,
            gpu,
            rate=each,
        )  # fmt: skip
    ]
