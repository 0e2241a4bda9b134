"""Families' own code with fp32 parameters under bf16 autocast, against transformers.

Mixtures of experts are left out: transformers' grouped product takes 16-bit weights only.
"""

from __future__ import annotations

import pytest

from tests.oracle.support.engine import trace_hf
from tests.oracle.support.hf import run_hf
from tests.oracle.support.tiny import TINY, attention_of

SPARSE = {"mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3", "gpt_oss"}
#: Falcon indexes with Python lists: PyTorch's constants of 8 bytes each, two a block, on the host.
HOST_BYTES = {"falcon": 64}


@pytest.mark.parametrize("checkpoint", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("family", sorted(set(TINY) - SPARSE))
def test_autocast_keeps_and_peaks_as_transformers_does(family: str, checkpoint: bool) -> None:
    attention = attention_of(family)
    real = run_hf(TINY[family], 2, 96, checkpoint, attention, autocast=True)
    ours = trace_hf(TINY[family], 2, 96, checkpoint, attention, autocast=True)
    allowed = HOST_BYTES.get(family, 0)
    assert 0 <= real.saved - ours.saved <= allowed
    assert 0 <= real.peak_over_base - ours.peak_over_params <= allowed
