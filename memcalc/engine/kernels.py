"""Kernels and Traits: which of the several ways to compute a step a run uses.

Kernels are choices of the setup and the stack (precision, attention kernel, loss). Traits are ways of
writing the model code that leave the result alone and change what is kept: how rotary halves are
cut, whether weights are fused, whether an activation is one kernel. Stack `torch` has the plain
decoder's traits; stack `hf` those of each family's code (engine/families.py).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Traits:
    """How the model code is written; the defaults are the plain decoder's."""

    rope_cut: str = "chunk"  # chunk: one node for both halves; slice: one each (transformers)
    rope_pair: bool = False  # q and k rotated by one function that holds both (transformers)
    fused_qkv: bool = False  # one weight for q, k, v
    fused_gate_up: bool = False  # one weight for gate and up
    gelu_by_hand: bool = False  # the tanh approximation as separate operators
    copy_attention_output: bool = False  # attention output made contiguous (transformers)


@dataclass(frozen=True, slots=True)
class BlockKind:
    """What tells one block of a model from another."""

    attention: str = "full"  # full | sliding
    sparse: bool = False  # its MLP is a mixture of experts
    recompute: str = "none"  # none | full | sac | sac-attention | reentrant


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
    selective: bool = False  # the attention core is a checkpoint of its own
    device: str = "cuda"  # cuda | cpu: kernels whose saved set differs
    use_dropout: bool = True
    hf: bool = False  # run the family's own transformers code
    traits: Traits = Traits()
