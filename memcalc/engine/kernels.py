"""Kernels: which of the several ways to compute a step a run uses. Chosen by stack and setup."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernels:
    """The variants of every op, for one run. The structure of a trace depends on these alone.

    param_dtype: parameters and gradients. compute_dtype: matmuls. autocast: casts inserted at each
    linear where the two differ (PyTorch's CUDA autocast rules).
    """

    param_dtype: str = "bf16"
    compute_dtype: str = "bf16"
    autocast: bool = False
    fp8_linear: bool = False
    norm: str = "hand"  # hand | decomposed | fused
    attention: str = "flash"  # flash | efficient | cudnn | eager
    loss: str = "plain"  # plain | fp32 | chunked | fused
    loss_chunks: int = 8
    recompute: str = "none"  # none | full | sac | sac-attention | selective | reentrant
    recompute_layers: int = 0  # full:N; 0 for all
    family_code: bool = False  # run the family's own Hugging Face code instead of the plain decoder
    device: str = "cuda"  # cuda | cpu: kernels whose saved set differs
    use_dropout: bool = True
