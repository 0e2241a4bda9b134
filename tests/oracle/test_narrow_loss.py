"""The loss of Qwen-1's own modeling file, which reads 16-bit logits as they are, against PyTorch.

transformers' Qwen2 runs with that loss in place of its own: logits shifted by a slice, then
cross-entropy, nothing in fp32 (modeling_qwen.py, QWenLMHeadModel.forward; training under DeepSpeed,
which has no autocast).
"""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.loss import loss_utils

from tests.oracle.support.engine import trace_hf
from tests.oracle.support.hf import run_hf
from tests.oracle.support.tiny import TINY


def qwen_loss(logits: Tensor, labels: Tensor, vocab_size: int, **kwargs: Any) -> Tensor:
    """Cross-entropy of logits and labels shifted by a slice, in the logits' dtype."""
    shifted = logits[..., :-1, :].contiguous()
    targets = labels[..., 1:].contiguous()
    return F.cross_entropy(shifted.view(-1, shifted.size(-1)), targets.view(-1))


@pytest.mark.parametrize("checkpoint", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("seq", [16, 96])
@pytest.mark.parametrize("batch", [1, 3])
def test_saved_bytes_and_peak(batch: int, seq: int, checkpoint: bool) -> None:
    """To the byte for one sequence; of several the last row of all but one is counted too."""
    changes = {"vocab_size": 8000}
    config = {**TINY["qwen2"], **changes}
    with mock.patch.dict(loss_utils.LOSS_MAPPING, {"ForCausalLM": qwen_loss}):
        real = run_hf(config, batch, seq, checkpoint)
    ours = trace_hf(config, batch, seq, checkpoint, narrow_loss=True)
    rows = (batch - 1) * changes["vocab_size"] * torch.bfloat16.itemsize
    assert ours.params == real.params
    assert 0 <= ours.saved - real.saved <= rows + 8 * batch
    assert 0 <= ours.peak_over_params - real.peak_over_base <= 3 * rows + 8 * batch
    if batch == 1:
        assert (ours.saved, ours.peak_over_params) == (real.saved, real.peak_over_base)


def test_half_of_what_the_upcast_takes() -> None:
    """12 bytes a logit with an fp32 copy, 6 without: cross-entropy's output, gradient and its input's."""
    config = {**TINY["qwen2"], "vocab_size": 60000, "num_hidden_layers": 1}
    wide, narrow = (trace_hf(config, 1, 256, True, narrow_loss=which) for which in (False, True))
    logits = 256 * 60000
    assert wide.peak_over_params - narrow.peak_over_params == pytest.approx(6 * logits, rel=0.01)
