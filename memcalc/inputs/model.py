"""ModelConfig: what a decoder, an encoder or both are, in Hugging Face's names, validated and frozen.

It states facts of the architecture only. Which kernels compute it belongs to the stack, what is
trained belongs to TrainingSetup. `inputs/hf.py` fills it from a config.json, `inputs/profiles.py`
from a TOML profile. Every field a block of the ledger reads is here, and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from memcalc.errors import ConfigError

#: Largest value of any single dimension; beyond it a number is a typing error.
MAX_DIM = 1 << 31
#: Most blocks; every one of them is an entry in lists (the deepest published model has 1000).
MAX_LAYERS = 4096

NormType = Literal["rmsnorm", "layernorm"]
NormPlacement = Literal["pre", "post", "sandwich", "post-residual"]
Position = Literal["rope", "learned", "alibi", "relative", "bucketed", "none"]
QkNorm = Literal["none", "head", "full"]
LayerType = Literal["full", "sliding"]
Scoring = Literal["softmax", "sigmoid", "softmax-of-chosen"]


def check_dim(name: str, value: object, minimum: int = 1) -> None:
    """Raise ConfigError unless value is an integer in [minimum, 2^31]."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{name}: got {value!r}; rule: a whole number >= {minimum}")
    if value < minimum:
        raise ConfigError(f"{name}: got {value}; rule: >= {minimum}")
    if value > MAX_DIM:
        raise ConfigError(f"{name}: got {value}, beyond any real model; rule: at most 2^31")


def check_choice(name: str, value: str, valid: tuple[str, ...]) -> None:
    """Raise ConfigError unless value is one of valid, naming the nearest."""
    if value not in valid:
        from memcalc.errors import unknown

        raise unknown(name, str(value), valid)


def check_rate(name: str, value: float) -> None:
    """Raise ConfigError unless value is a probability below 1."""
    if not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise ConfigError(f"{name}: got {value!r}; rule: 0 <= p < 1")


@dataclass(frozen=True, kw_only=True)
class MoeConfig:
    """Mixture of experts of the sparse layers.

    num_experts routed experts of width moe_intermediate_size, num_experts_per_tok of them per token;
    shared_intermediate_size is the total width of the always-active shared expert (0: none).
    sparse_layers: indices of the layers that are sparse.
    """

    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    sparse_layers: tuple[int, ...]
    shared_intermediate_size: int = 0
    shared_expert_gate: bool = False  # Qwen2-MoE: a sigmoid gate on the shared expert
    router_bias: bool = False  # gpt-oss: the router is a linear with bias
    correction_bias: bool = False  # DeepSeek-V3: a per-expert buffer, not a parameter
    expert_bias: bool = False  # gpt-oss: biases on both expert projections
    scoring: Scoring = "softmax"  # softmax-of-chosen: gpt-oss, over the chosen experts alone
    fp32_router: bool = False  # DeepSeek: the router's product runs on fp32 copies
    normalize_top_k: bool = False  # the chosen experts' weights are divided by their sum
    expert_groups: int = 0  # DeepSeek: experts are chosen inside the best groups; 0: no groups
    groups_per_token: int = 1

    def __post_init__(self) -> None:
        for name in ("num_experts", "num_experts_per_tok", "moe_intermediate_size"):
            check_dim(name, getattr(self, name))
        check_dim("shared_intermediate_size", self.shared_intermediate_size, 0)
        for entry in self.sparse_layers:
            check_dim("sparse_layers", entry, 0)
        check_choice("scoring", self.scoring, ("softmax", "sigmoid", "softmax-of-chosen"))
        self._check_groups()
        if self.num_experts_per_tok > self.num_experts:
            raise ConfigError(
                f"num_experts_per_tok: got {self.num_experts_per_tok}; "
                f"rule: at most num_experts = {self.num_experts}"
            )

    def _check_groups(self) -> None:
        check_dim("expert_groups", self.expert_groups, 0)
        check_dim("groups_per_token", self.groups_per_token)
        if self.expert_groups and self.num_experts % self.expert_groups:
            raise ConfigError(
                f"expert_groups: got {self.expert_groups}; "
                f"rule: divides num_experts = {self.num_experts}"
            )


@dataclass(frozen=True, kw_only=True)
class MlaConfig:
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, sec. 2.1): low-rank q and kv."""

    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    q_lora_rank: int | None = None  # None: a full-rank query projection (V2-Lite)

    def __post_init__(self) -> None:
        for name in ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"):
            check_dim(name, getattr(self, name))
        if self.q_lora_rank is not None:
            check_dim("q_lora_rank", self.q_lora_rank)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One language model. Field names are those of Hugging Face config.json files.

    num_encoder_layers above 0 makes it an encoder-decoder (T5): as many encoder blocks, then
    num_hidden_layers decoder blocks that read the encoder's output.

    Raises ConfigError when a field is out of range or fields contradict each other.
    Checked by: unit/test_model_config.py, oracle/test_profile_parameters.py.
    """

    name: str
    model_type: str  # Hugging Face model_type: whose code runs under stack "hf"
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    tie_word_embeddings: bool = False
    # MLP
    hidden_act: str = "silu"  # Hugging Face activation name
    gated_mlp: bool = True  # act(gate(x)) * up(x), else act(up(x))
    # norms
    norm_type: NormType = "rmsnorm"
    norm_placement: NormPlacement = "pre"
    # pre: x + f(norm(x)); post: x + norm(f(x)) (OLMo-2); sandwich: x + norm(f(norm(x))) (Gemma-2);
    # post-residual: norm(x + f(x)) (OPT-350m, GPT-1)
    norm_bias: bool = True  # layer norms only
    norm_unit_offset: bool = False  # Gemma: scale by 1 + weight
    final_norm: bool = True
    embedding_norm: bool = False  # BLOOM: a norm right after the embedding
    qk_norm: QkNorm = "none"  # head: over head_dim (Qwen3); full: over all heads (OLMo-2)
    # block shape
    parallel_block: bool = False  # x + attention(norm(x)) + mlp(norm'(x)) (GPT-J, NeoX, Falcon)
    parallel_norms: int = 1  # 1: attention and MLP share one norm; 2: a norm each
    # positions
    position_embedding: Position = "rope"
    rotary_dim: int | None = None  # rotated width of each head; None: the whole head
    num_position_rows: int = 0  # rows of a learned position table (OPT has 2 more than positions)
    relative_buckets: int = 0  # rows of T5's table of relative positions
    # encoders
    num_encoder_layers: int = 0  # of an encoder-decoder; num_hidden_layers are the decoder's
    bidirectional: bool = False  # every position sees all others (BERT)
    token_types: int = 0  # rows of BERT's segment table
    head_transform: bool = False  # BERT: dense, activation and norm before the head
    head_scale: bool = False  # T5 1.0: hidden states times h^-1/2 before the tied head
    # weights
    fused_qkv: bool = False  # q, k and v are one weight matrix
    attention_bias: bool = False  # on q, k, v
    attention_output_bias: bool = False
    mlp_bias: bool = False
    lm_head_bias: bool = False
    # attention variants
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    sliding_window: int | None = None
    layer_types: tuple[LayerType, ...] = ()  # one per layer; empty: all full
    attention_sinks: bool = False
    # embedding variants
    embedding_scale: bool = False  # Gemma: x * sqrt(hidden_size)
    word_embed_proj_dim: int | None = None  # OPT-350m: embedding narrower than hidden_size
    # dropout rates of the training configuration
    attention_dropout: float = 0.0
    residual_dropout: float = 0.0
    embedding_dropout: float = 0.0
    # sub-structures
    moe: MoeConfig | None = None
    mla: MlaConfig | None = None
    dtype: str = (
        "bfloat16"  # of the published weights; a note, training precision is a setup matter
    )
    notes: tuple[str, ...] = ()  # what was read and is not priced, said with every estimate

    def __post_init__(self) -> None:
        for name in (
            "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
            "num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings",
        ):  # fmt: skip
            check_dim(name, getattr(self, name))
        if self.num_hidden_layers > MAX_LAYERS:
            raise ConfigError(
                f"num_hidden_layers: got {self.num_hidden_layers}, beyond any real model; "
                f"rule: at most {MAX_LAYERS}"
            )
        for name in ("attention_dropout", "residual_dropout", "embedding_dropout"):
            check_rate(name, getattr(self, name))
        check_choice("norm_type", self.norm_type, ("rmsnorm", "layernorm"))
        check_choice(
            "norm_placement", self.norm_placement, ("pre", "post", "sandwich", "post-residual")
        )
        check_choice(
            "position_embedding",
            self.position_embedding,
            ("rope", "learned", "alibi", "relative", "bucketed", "none"),
        )
        check_choice("qk_norm", self.qk_norm, ("none", "head", "full"))
        self._check_heads()
        self._check_layers()

        check_dim("num_encoder_layers", self.num_encoder_layers, 0)
        check_dim("token_types", self.token_types, 0)
        if self.position_embedding == "bucketed":
            check_dim("relative_buckets", self.relative_buckets)

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether an encoder comes before the decoder."""
        return self.num_encoder_layers > 0

    @property
    def is_encoder(self) -> bool:
        """Whether there is an encoder, alone (BERT) or before a decoder (T5)."""
        return self.bidirectional or self.is_encoder_decoder

    def _check_heads(self) -> None:
        a, k = self.num_attention_heads, self.num_key_value_heads
        if a % k:
            valid = [n for n in range(1, a + 1) if a % n == 0] if a <= 4096 else [1, a]
            raise ConfigError(
                f"num_key_value_heads: got {k}; rule: divides num_attention_heads={a}; "
                f"valid: {', '.join(map(str, valid))}"
            )
        if self.rotary_dim is not None:
            check_dim("rotary_dim", self.rotary_dim)
            if self.rotary_dim > self.head_dim:
                raise ConfigError(
                    f"rotary_dim: got {self.rotary_dim}; rule: at most head_dim = {self.head_dim}"
                )
        if self.position_embedding == "learned" and self.num_position_rows < 1:
            raise ConfigError(
                f"num_position_rows: got {self.num_position_rows}; rule: >= 1 with learned positions"
            )

    def _check_layers(self) -> None:
        n_layers = self.num_hidden_layers
        for entry in self.layer_types:
            check_choice("layer_types", entry, ("full", "sliding"))
        if self.layer_types and len(self.layer_types) != n_layers:
            raise ConfigError(
                f"layer_types: got {len(self.layer_types)} entries; rule: one for each of the "
                f"{n_layers} layers"
            )
        if "sliding" in self.layer_types and self.sliding_window is None:
            raise ConfigError("sliding_window: got none; rule: set when a layer is 'sliding'")
        if self.sliding_window is not None:
            check_dim("sliding_window", self.sliding_window)
        if self.moe and self.moe.sparse_layers and max(self.moe.sparse_layers) >= n_layers:
            raise ConfigError(
                f"sparse_layers: got index {max(self.moe.sparse_layers)}; rule: below {n_layers}"
            )

    def is_sparse(self, layer: int) -> bool:
        """Whether this layer's MLP is a mixture of experts."""
        return self.moe is not None and layer in self.moe.sparse_layers

    def layer_type(self, layer: int) -> LayerType:
        """`sliding` or `full` attention in this layer."""
        return self.layer_types[layer] if self.layer_types else "full"
