"""What PEFT's virtual tokens need of a device without data: indices from the host, sdpa under a mask.

`direct_masked` is transformers' sdpa path with what PyTorch's dispatcher does on CUDA written out: the
boolean mask becomes a bias in the query's dtype (convert_boolean_attn_mask), and goes to the
memory-efficient kernel (tests/oracle/support/hf_encoders.py).
"""

from __future__ import annotations

from typing import Any

import peft
import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.oracle.support.hf_encoders import _sdpa

MASKED = "direct_masked"


class OnHost:
    """The indices of virtual tokens, which PEFT keeps on the host and copies in every forward."""

    def __init__(self, config: peft.PeftConfig) -> None:
        self.tokens: int = config.num_virtual_tokens
        self.batch = 1

    def unsqueeze(self, dim: int) -> OnHost:
        return self

    def expand(self, batch: int, tokens: int) -> OnHost:
        self.batch = batch
        return self

    def to(self, device: torch.device) -> Tensor:
        return torch.zeros(self.batch, self.tokens, dtype=torch.long, device=device)


def _masked(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    assert attention_mask is not None and attention_mask.dtype == torch.bool
    groups = getattr(module, "num_key_value_groups", 1)
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    dtype = torch.bfloat16 if torch.is_autocast_enabled("cpu") else query.dtype
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    out = _sdpa(query, key, value, _additive(attention_mask, query), dropout, scaling)
    return out.transpose(1, 2).contiguous(), None


def _additive(mask: Tensor, query: Tensor) -> Tensor:
    lowest = torch.scalar_tensor(-torch.inf, dtype=query.dtype, device=query.device)
    zero = torch.scalar_tensor(0.0, dtype=query.dtype, device=query.device)
    return torch.where(mask, zero, lowest)


ALL_ATTENTION_FUNCTIONS.register(MASKED, _masked)
ALL_MASK_ATTENTION_FUNCTIONS.register(MASKED, sdpa_mask)
