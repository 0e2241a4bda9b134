"""Choosing the next token from logits (b, 1, V), without gradients.

greedy: the largest of an fp32 copy (transformers' generate). probabilities: probabilities and their
logarithms are made besides (vLLM 0.6). sorted: the logits are first cut by rank and by cumulated
probability, which sorts them; vLLM's profile run asks for that. Where tp ranks share the vocabulary the
logits are gathered first. Scratch that a sort takes inside one kernel is not seen.
Source: transformers 5.23, generation/utils.py (_sample); vllm-project/vllm v0.6.3,
vllm/model_executor/layers/sampler.py (_apply_top_k_top_p) and worker/model_runner.py (profile_run).
Checked by: unit/test_serving_vllm.py.
"""

from __future__ import annotations

from typing import Final

from memcalc.engine.aten.pointwise import to
from memcalc.engine.build import Build
from memcalc.engine.sizes import ONE
from memcalc.engine.tensors import Tensor

GREEDY: Final = "greedy"
PROBABILITIES: Final = "probabilities"
SORTED: Final = "sorted"


def sampled(build: Build, logits: Tensor, how: str) -> Tensor:
    """The next token of each sequence (b), int64."""
    build.at("sample", "head")
    tape = build.tape
    if "tp" in build.dims:
        shape = (build["b"], ONE, build["V"] * build["tp"])
        logits = tape.empty("all_gather", shape, logits.dtype)
    wide = to(logits, "fp32")
    if how == SORTED:
        wide = _cut(wide)
    if how == GREEDY:
        tape.loads(wide)
        return tape.empty("argmax", (build["b"],), "int64")
    tape.loads(wide)
    _probabilities = tape.empty("_softmax", wide.shape, "fp32")
    tape.loads(wide)
    _logarithms = tape.empty("_log_softmax", wide.shape, "fp32")
    tape.loads(_logarithms)
    return tape.empty("argmax", (build["b"],), "int64")


def _cut(logits: Tensor) -> Tensor:
    """Logits with all but the likeliest set to -inf: sorted, masked twice, put back in their order."""
    tape, shape = logits.tape, logits.shape
    tape.loads(logits)
    values = tape.empty("sort", shape, "fp32")
    order = tape.empty("sort", shape, "int64")
    tape.loads(values)
    _beyond_k = tape.empty("lt.Tensor", shape, "bool")
    tape.in_place("masked_fill_", values, _beyond_k)
    tape.loads(values)
    probabilities = tape.empty("_softmax", shape, "fp32")
    tape.loads(probabilities)
    sums = tape.empty("cumsum", shape, "fp32")
    tape.loads(sums)
    _beyond_p = tape.empty("le.Tensor", shape, "bool")
    tape.in_place("masked_fill_", values, _beyond_p)
    tape.loads(values, order)
    return tape.empty("scatter", shape, "fp32")
