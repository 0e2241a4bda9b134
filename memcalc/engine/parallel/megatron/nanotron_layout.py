"""What a layout makes of a model in nanotron: which models it runs, its kernels, how stages are cut.

Heads, columns of the MLP and rows of the vocabulary are divided over tp as in Megatron, the vocabulary
padded to a multiple of tp. Stages follow the cost of their blocks: a layer costs 4 a d h + 3 f h, the
head V h, all else nothing; a block goes to the current rank, and the next rank is current as soon as
the sum of costs exceeds the current one's share. So a rank may have the head and no layer; here the
final norm, the head and the loss are the last rank's.
Source: huggingface/nanotron 0.5, models/base.py (build_model), models/llama.py
(get_block_compute_costs), helpers.py (_vocab_size_with_padding).
Checked by: unit/test_nanotron_layout.py.
"""

from __future__ import annotations

from memcalc.engine.kernels import Kernels, Megatron
from memcalc.engine.optimizer import OptimizerPlan
from memcalc.errors import ConfigError
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.parallel import ParallelPlan, divisors
from memcalc.inputs.stacks import Stack
from memcalc.inputs.training import ResolvedSetup

CODE = "nanotron"


def runs_nanotron(kernels: Kernels) -> bool:
    """Whether these are nanotron's layers."""
    return kernels.megatron is not None and kernels.megatron.code == CODE


def nanotron_kernels(kernels: Kernels, resolved: ResolvedSetup, stack: Stack) -> Kernels:
    """The kernels of an undivided model. Raises ConfigError for what nanotron has not."""
    setup = resolved.setup
    for name, got, valid in (
        ("precision", setup.precision, ("bf16-mixed",)),
        ("recompute", setup.recompute, ("none", "full")),
        ("loss", kernels.loss, ("fp32",)),
        ("attention", kernels.attention, ("flash",)),
        ("optimizer", setup.optimizer, ("adamw",)),
    ):
        if got not in valid:
            raise ConfigError(f"{name}: got {got!r} on stack {stack.name}; valid: "
                              f"{', '.join(valid)}")  # fmt: skip
    _check_model(resolved.config, stack.name)
    return kernels._replace(
        param_dtype="bf16",
        compute_dtype="bf16",
        autocast=False,
        megatron=Megatron(code=CODE, adds_in_place=False),
    )


def _check_model(config: ModelConfig, stack: str) -> None:
    """LlamaForTraining: rotary positions, RMSNorm, a gated MLP, no biases."""
    unlike = {
        "experts": config.moe is not None,
        "latent attention": config.mla is not None,
        "branches side by side": config.parallel_block,
        f"norms {config.norm_placement}": config.norm_placement != "pre",
        f"norm {config.norm_type}": config.norm_type != "rmsnorm",
        f"{config.position_embedding} positions": config.position_embedding != "rope",
        "an MLP without a gate": not config.gated_mlp,
        "biases": config.attention_bias or config.attention_output_bias or config.mlp_bias,
        "norms of q and k": config.qk_norm != "none",
        "capped scores or logits": config.attn_logit_softcapping is not None
        or config.final_logit_softcapping is not None,
        "attention sinks": config.attention_sinks,
        "a narrow embedding": config.word_embed_proj_dim not in (None, config.hidden_size),
    }
    has = [what for what, applies in unlike.items() if applies]
    if has:
        raise ConfigError(
            f"stack {stack}: got {config.name} with {', '.join(has)}; rule: models of the Llama form"
        )


def check_nanotron(layout: ParallelPlan, config: ModelConfig) -> None:
    """Raise ConfigError unless nanotron can divide this model so."""
    groups, tp = config.num_key_value_heads, layout.tp
    if groups % tp:
        valid = ", ".join(map(str, divisors(groups)))
        raise ConfigError(
            f"tp: got {tp}; rule: divides the {groups} key/value heads; valid: {valid}"
        )
    if config.intermediate_size % tp:
        raise ConfigError(f"tp: got {tp}; rule: divides the MLP's width {config.intermediate_size}")
    if layout.cp > 1 or layout.ep > 1:
        raise ConfigError("cp, ep: nanotron's Llama has neither; valid: 1")


def nanotron_optimizer(optimizer: OptimizerPlan, resolved: ResolvedSetup) -> OptimizerPlan:
    """AdamW over fp32 masters, fused unless stated otherwise: it reads gradients in the buffer."""
    impl = resolved.setup.optimizer_impl or "fused"
    return optimizer._replace(impl=impl, master=True, widens_gradients=False)


def padded_vocabulary(rows: int, tp: int) -> int:
    """Rows of the vocabulary as stored: the next multiple of tp (make_vocab_size_divisible_by 1)."""
    return -(-rows // tp) * tp


def stage_layers(config: ModelConfig, stages: int) -> tuple[int, ...]:
    """Layers of each stage by the costs of blocks."""
    h, f = config.hidden_size, config.intermediate_size
    layer = 4 * config.num_attention_heads * config.head_dim * h + 3 * f * h
    costs = [0, *[layer] * config.num_hidden_layers, 0, config.vocab_size * h, 0, 0]
    counts, stage, reached, total = [0] * stages, 0, 0, sum(costs)
    for cost in costs:
        counts[stage] += cost == layer
        reached += cost
        if reached > total * ((stage + 1) / stages):
            stage += 1
    return tuple(counts)
