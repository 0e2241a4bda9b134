"""Primitives of a CPU's calibration: the bytes of their rates are those of the ledger's kernels."""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from typing import Any

import pytest
import torch

from memcalc.engine.works import works_of
from memcalc.harness.calibration.microbench import CPU, CUDA, DTYPES
from memcalc.harness.calibration.microbench_primitives import CASTS, PRIMITIVES, primitives
from memcalc.harness.local import local_plan
from memcalc.inputs.training import TrainingSetup
from tests.harness.models import GPT2, LLAMA

_SIDE = (
    128  # tokens, hidden, intermediate, vocabulary: every tensor of a step is a square or a half
)
_SAME = {"hidden_size": _SIDE, "intermediate_size": _SIDE, "vocab_size": _SIDE, "head_dim": _SIDE,
         "num_attention_heads": 1, "num_key_value_heads": 1}  # fmt: skip


@lru_cache(maxsize=1)
def _ledger() -> dict[tuple[str, str], set[int]]:
    """Bytes of the kernels of each name and dtype, over some decoders."""
    found: dict[tuple[str, str], set[int]] = {}
    for config in (dataclasses.replace(GPT2, residual_dropout=0.1), LLAMA):
        square: Any = dataclasses.replace(config, **_SAME)
        for precision in ("fp32", "bf16", "bf16-mixed"):
            for loss in ("plain", "fp32"):
                setup = TrainingSetup(
                    seq_len=_SIDE, micro_batch_size=1, precision=precision, loss=loss
                )
                plan = local_plan(square, setup, {}, "cpu")
                for work, _ in works_of(plan):
                    sizes = found.setdefault((work.name, work.dtype), set())
                    sizes.add(work.moved.value(plan.values))
    return found


_CASES = [*((one, dtype) for one in PRIMITIVES for dtype in CPU.dtypes),
          *((one, dtype) for dtype, one in CASTS.items())]  # fmt: skip


@pytest.mark.parametrize(("one", "dtype"), _CASES, ids=lambda value: getattr(value, "name", value))
def test_a_primitive_moves_what_the_ledger_says(one: Any, dtype: str) -> None:
    """Half the bytes are those of the rotation's halves; weights and statistics are a few per cent."""
    told = _ledger().get((one.name, dtype), set())
    if not told:
        assert (one.name, "fp32") in _ledger()  # runs in fp32 only
        return
    wanted = one.passes * _SIDE * _SIDE * DTYPES[dtype].itemsize
    assert any(size == pytest.approx(wanted / part, rel=0.1) for size in told for part in (1, 2))


@pytest.mark.parametrize(("one", "dtype"), _CASES, ids=lambda value: getattr(value, "name", value))
def test_a_primitive_is_the_one_it_says(one: Any, dtype: str) -> None:
    kind = DTYPES[dtype]
    call = one.make(torch.randn(8, 32, dtype=kind), torch.randn(8, 32, dtype=kind))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        call()
    ran = {event.key.removeprefix("aten::").rstrip("_") for event in seen.key_averages()}
    assert one.name.partition(".")[0].rstrip("_") in ran


def test_a_gpu_measures_none_of_them() -> None:
    assert primitives(CUDA) == [] and len(primitives(CPU)) == len(_CASES)
