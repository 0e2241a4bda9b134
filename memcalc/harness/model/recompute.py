"""Recomputation of a block: torch's checkpointing in each of its kinds.

full: non-reentrant with early stop; sac and sac-attention: selective, matmuls and attention kernels
kept or attention kernels alone; reentrant: the older implementation.
Checked by: oracle/test_step_peak.py, harness/test_decoder_variants.py.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

_aten = torch.ops.aten


def _operators(*names: str) -> frozenset[Any]:
    """Those of torch's operators that this release has."""
    return frozenset(getattr(_aten, name).default for name in names if hasattr(_aten, name))


_ATTENTION: Final = _operators(
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
)
_MATMULS: Final = _operators("mm", "addmm", "bmm", "_grouped_mm", "_scaled_mm")
_KEPT: Final = {"sac": _ATTENTION | _MATMULS, "sac-attention": _ATTENTION}


def run_block(block: nn.Module, recompute: str, *args: Tensor) -> Tensor:
    """block(*args) under the block's kind of recomputation."""
    out: Tensor
    if recompute in _KEPT:
        policy = partial(_keep, _KEPT[recompute])
        contexts = partial(create_selective_checkpoint_contexts, policy)
        out = checkpoint(block, *args, use_reentrant=False, context_fn=contexts)
    elif recompute == "reentrant":
        out = checkpoint(block, *args, use_reentrant=True)
    elif recompute == "full":
        out = checkpoint(block, *args, use_reentrant=False)
    else:
        out = block(*args)
    return out


def _keep(kept: frozenset[Any], ctx: Any, func: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if func in kept else CheckpointPolicy.PREFER_RECOMPUTE
