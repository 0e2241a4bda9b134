"""Kernels and Traits: which of the several ways to compute a step a run uses.

Kernels are choices of the setup and the stack (precision, attention kernel, loss). Traits are ways of
writing the model code that leave the result alone and change what is kept: how rotary halves are
cut, whether weights are fused, whether an activation is one kernel. Stack `torch` has the plain
decoder's traits; stack `hf` those of each family's code (engine/families.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from memcalc.engine.aten.quantised import Quantised


class Traits(NamedTuple):
    """How the model code is written; the defaults are the plain decoder's."""

    block: str = "sequential"  # sequential | bert | t5, or the family (gpt2, gptj, ...)
    qkv: str = "three"  # three | split | slices | per_head: how q, k, v are projected and cut
    qk_norm_at: str = "flat"  # flat | heads | transposed: layout of q and k when they are normed
    rope: str = "whole"  # whole | cat_each | cat_both: how the part not rotated is joined again;
    # halves: each half rotated by tables of half the width (gpt-oss)
    tables: str = "full"  # full | fp32 (OLMo-2) | half (gpt-oss) | complex (DeepSeek-V2)
    repeats_kv: bool = False  # keys and values copied to every query head (ChatGLM2)
    scale_query: bool = False  # q multiplied by d^-1/2 before the kernel (OPT)
    drop_inside: bool = False  # residual dropout while attention still holds q, k, v (GPT-2)
    upcast_softmax: bool = True  # eager attention's softmax in fp32
    norm_casts_last: bool = False  # weight times fp32, then the cast (OLMo-2)
    experts_first: bool = False  # the experts are registered before their router
    fused_gate_up: bool = False  # one weight for gate and up (Phi-3)
    gelu_by_hand: bool = False  # gelu_new as separate operators
    inline_mlp: bool = False  # the MLP written out in the block: its input goes early (OPT)
    keeps_undropped: bool = False  # the branch before dropout lives until the sum (Phi-3)
    code: str = "plain"  # plain | torchtune | torchtitan | litgpt: whose layer the stack runs, if not its own
    packed: bool = False  # rotary rows by each token's place in its own sample (torchtune)
    start: str = "llama"  # llama, bert or the family (gpt2, gptj, ...): what runs before block 0


class BlockKind(NamedTuple):
    """What tells one block of a model from another."""

    attention: str = "full"  # full | sliding
    sparse: bool = False  # its MLP is a mixture of experts
    recompute: str = "none"  # none | full | sac | sac-attention | sac-every-second | reentrant
    trains: bool = True  # with --peft freeze:N: this block does
    # decoder | encoder | cross: a decoder that reads an encoder's output; of a second model beside the
    # first: reference (frozen) | critic
    stack: str = "decoder"
    first: bool = False  # of an encoder-decoder's stack: it makes the position bias of all


class Megatron(NamedTuple):
    """How Megatron-Core, or nanotron after it, runs a layer: what is divided, what is fused.

    Booleans say what a rank's traffic adds to the timeline; how many ranks there are is in the dims.
    """

    code: str = "megatron"  # megatron | nanotron
    split: bool = False  # weights are divided over tp
    sequence: bool = False  # the stream between layers is divided along the sequence
    adds_in_place: bool = (
        True  # weight gradients are added to the fp32 buffer by the product itself
    )
    context: str = "none"  # none | ring | ulysses: attention over a sequence that cp ranks share
    ring: int = 1  # ranks of the ring
    experts_apart: bool = False  # ep ranks hold different experts
    experts_split: bool = False  # etp ranks share each expert
    several_experts: bool = True  # a rank holds more than one
    capacity: str = "none"  # none | drop | pad: what happens to rows beyond an expert's capacity
    recomputes: tuple[str, ...] = ()  # parts of a layer that backward computes again


class DTensors(NamedTuple):
    """A layer that tp ranks share by PyTorch's DTensor: how many there are is in the dims.

    sequence: the stream between layers is divided along the sequence.
    """

    sequence: bool = False


class Contexts(NamedTuple):
    """A sequence that cp ranks share: each has its own positions of it.

    method: ring (keys and values come by) | ulysses (whole sequences of a rank's own heads). rank: its
    number, on which the ring's temporaries and the layout of its result depend.
    """

    method: str
    ranks: int
    rank: int


class Adapter(NamedTuple):
    """Fine-tuning that does not train every weight; its rank is a dim.

    targets: linears with something beside them, by the ledger's names. dtype: of what is added.
    parts: of the layers that train with freeze:N, the linears that do; all of a layer where empty.
    input_gradients: the embedding's output is made to need a gradient, as transformers does where
    activations are recomputed.
    """

    method: str = "lora"
    targets: frozenset[str] = frozenset()
    dtype: str = "fp32"
    dropout: bool = False
    input_gradients: bool = False
    parts: frozenset[str] = frozenset()
    projects: bool = False  # an MLP makes the prefix
    kind: str = ""  # of bottleneck adapters: houlsby | pfeiffer | parallel
    quantised: Quantised | None = None  # how frozen linears of the blocks are packed


class LossEnd(NamedTuple):
    """What ends the model in feedback training, instead of next-token cross-entropy.

    kind: dpo | reward | value | policy | shared (policy and values of one trunk) | joint (policy and a
    critic of its architecture, one backward) | grpo; without gradients logps | values | score. rows:
    sequences, whose log-probabilities are made one after the other. chunks: of positions whose entropy is
    made. reference: of dpo, whose log-probabilities are made
    inside the loss: model | adapter (the model itself, its adapters off) | none (known beforehand).
    beta: grpo's loss has a divergence from a reference. keeps_hidden: the outputs hold every block's.
    Source: TRL 1.0.0. Checked by: oracle/test_feedback.py.
    """

    kind: str
    rows: int = 1
    chunks: int = 0
    reference: str = "none"
    beta: bool = False
    keeps_hidden: bool = False


class Kernels(NamedTuple):
    """The variants of every op, for one run. The structure of a trace depends on these alone.

    param_dtype: parameters and gradients. compute_dtype: matmuls. autocast: casts inserted at each
    linear where the two differ (PyTorch's CUDA autocast rules).
    """

    param_dtype: str = "bf16"
    compute_dtype: str = "bf16"
    autocast: bool = False
    fp8_linear: bool = False
    caches_casts: bool = True  # autocast keeps casts of parameters; of FSDP1's views it keeps none
    fp8_gather: bool = False  # a block's matrices are gathered from other ranks in fp8
    norm: str = "hand"  # hand | decomposed | fused
    attention: str = "flash"  # flash | efficient | cudnn | eager
    attention_code: str = ""  # whose code that kernel is, where it decides speed: triton | cudnn
    loss: str = "plain"  # plain | fp32 | chunked | fused
    loss_chunks: int = 8
    selective: bool = False  # the attention core is a checkpoint of its own
    device: str = "cuda"  # cuda | cpu: kernels whose saved set differs
    use_dropout: bool = True
    watched: bool = (
        False  # a dispatch mode looks on: gradients are summed and scattered out of place
    )
    hf: bool = False  # run the family's own transformers code
    compiled: bool = False  # torch.compile on each block
    long_rows: bool = False  # of scores: compiled, too long for one pass of a softmax's backward
    offloads: bool = False  # what blocks save waits on the host
    compiled_loss: bool = False  # torch.compile on the cross-entropy
    cuda_graphs: bool = False  # of compiled blocks: replayed as CUDA graphs (mode reduce-overhead)
    traits: Traits = Traits()
    megatron: Megatron | None = None  # run Megatron-Core's layers
    dtensor: DTensors | None = None  # the plain decoder's layers, shared by tp ranks
    context: Contexts | None = None  # its attention, over sequences that cp ranks share
    expert_ranks: int = 1  # ranks its experts are spread over
    adapter: Adapter | None = None  # what trains, where not every weight does
    keeps_inputs: bool = False  # linears keep their input for backward, frozen or not (ZeRO-3)
    loss_end: LossEnd | None = None  # feedback training's; None: next-token cross-entropy
    narrow_loss: bool = False  # with hf: the loss reads the logits as they are, no fp32 copy
    # T5: rows of scores over source and target positions that the efficient kernel's bias has padded
    pads_bias: tuple[bool, bool] = (False, False)
