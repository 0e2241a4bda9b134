"""What Megatron runs and how it can be divided: every refusal in one line, with what is valid.

Source: Megatron-Core 0.14, transformer/transformer_config.py, training/arguments.py, parallel_state.py,
optimizer/__init__.py; TransformerEngine 2.11, attention/dot_product_attention/utils.py (16-bit kernels).
Checked by: unit/test_megatron_rules.py, unit/test_megatron_moe.py.
"""

from __future__ import annotations

from collections.abc import Iterable

from memcalc.engine.kernels import Kernels
from memcalc.errors import ConfigError, NotInThisVersionError
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.parallel import ParallelPlan, divisors
from memcalc.inputs.training import TrainingSetup

#: Dtype of parameters and products, by precision.
DTYPES = {"fp32": "fp32", "bf16-mixed": "bf16", "fp16-mixed": "fp16"}


def check_setup(setup: TrainingSetup, kernels: Kernels, stack: str) -> None:
    """Raise ConfigError for precisions, kernels and optimizers Megatron has not."""
    if setup.precision == "fp8-mixed":
        raise NotInThisVersionError(
            f"precision: fp8-mixed on stack {stack} is not in this version; valid: bf16-mixed"
        )
    kernel = ("eager",) if setup.precision == "fp32" else ("flash", "cudnn", "eager")
    for name, got, valid in (
        ("precision", setup.precision, tuple(DTYPES)),
        ("recompute", setup.recompute, ("none", "selective", "full")),
        ("attention", kernels.attention, kernel),
        ("loss", kernels.loss, ("fp32", "plain", "fused")),
        ("norm", kernels.norm, ("fused",)),
        ("optimizer", setup.optimizer, ("adamw", "sgd", "none")),
        ("optimizer_impl", setup.optimizer_impl or "fused", ("fused",)),
    ):
        if got not in valid:
            beside = " in fp32" if name == "attention" and len(valid) == 1 else ""
            raise ConfigError(
                f"{name}: got {got!r}{beside} on stack {stack}; valid: {', '.join(valid)}"
            )


def recomputed(setup: TrainingSetup, config: ModelConfig) -> tuple[str, ...]:
    """The parts of a layer that selective recomputation names. Raises ConfigError for one it lacks."""
    if setup.recompute != "selective":
        return ()
    valid = ["core_attn"]
    layers = range(config.num_hidden_layers)
    valid += [] if all(config.is_sparse(layer) for layer in layers) else ["mlp"]
    valid += ["layernorm"] if config.moe or config.mla else []
    valid += ["moe_act", "moe"] if config.moe else []
    valid += ["shared_experts"] if config.moe and config.moe.shared_intermediate_size else []
    valid += ["mla_up_proj"] if config.mla else []
    for module in setup.recompute_modules:
        if module not in valid:
            raise ConfigError(
                f"recompute_modules: got {module}, which {config.name} has not apart; "
                f"valid: {', '.join(valid)}"
            )
    return setup.recompute_modules or ("core_attn",)


def check_model(config: ModelConfig, stack: str) -> None:
    """Raise ConfigError unless this is Megatron's GPT: a norm before each branch, one after the other.

    BigScience's fork has ALiBi and a norm of the embedding besides.
    """
    blooms = stack == "megatron-deepspeed"
    positions = ("rope", "learned", "none", *(("alibi",) if blooms else ()))
    unlike = {
        "branches side by side": config.parallel_block,
        f"norms {config.norm_placement}": config.norm_placement != "pre",
        f"{config.position_embedding} positions": config.position_embedding not in positions,
        "a norm over all heads of q and k": config.qk_norm == "full",
        "capped scores": config.attn_logit_softcapping is not None,
        "capped logits": config.final_logit_softcapping is not None,
        "attention sinks": config.attention_sinks,
        "a narrow embedding": config.word_embed_proj_dim not in (None, config.hidden_size),
        "a norm of the embedding": config.embedding_norm and not blooms,
        "no final norm": not config.final_norm,
    }
    has = [what for what, applies in unlike.items() if applies]
    if has:
        raise ConfigError(
            f"stack {stack}: got {config.name} with {', '.join(has)}; rule: models of the GPT, "
            "Llama, Qwen, Mixtral and DeepSeek form"
        )


def check_megatron(layout: ParallelPlan, config: ModelConfig) -> None:
    """Raise ConfigError unless Megatron can divide this model so."""
    groups, tp = config.num_key_value_heads, layout.tp
    if groups % tp:
        valid = _listed(divisors(groups))
        raise ConfigError(
            f"tp: got {tp}; rule: divides the {groups} key/value heads of {config.name}; "
            f"valid: {valid}"
        )
    if config.intermediate_size % tp:
        raise ConfigError(f"tp: got {tp}; rule: divides the MLP's width {config.intermediate_size}")
    if layout.cp > 1 and layout.cp_method == "ulysses" and (groups // tp) % layout.cp:
        raise ConfigError(
            f"cp: got {layout.cp} by all-to-all; rule: divides the {groups // tp} key/value heads "
            f"of a rank; valid: {_listed(divisors(groups // tp))}, or --cp-method ring"
        )
    _check_experts(layout, config)


def _check_experts(layout: ParallelPlan, config: ModelConfig) -> None:
    """Experts: their ranks and an expert's own ranks are cut out of tp x cp x dp."""
    if config.moe is None:
        if layout.etp is not None:
            raise ConfigError(f"etp: got {layout.etp}; rule: {config.name} has no experts")
        return
    if layout.tp > 1 and not layout.sp:
        raise ConfigError(
            f"sp: got no with experts and tp {layout.tp}; rule: Megatron trains experts beside tp "
            "with sequence parallelism only; valid: --sp"
        )
    split, width = expert_split(layout), config.moe.moe_intermediate_size
    named = "etp" if layout.etp is not None else "etp (tp unless stated)"
    if width % split:
        raise ConfigError(
            f"{named}: got {split}; rule: divides an expert's width {width}; "
            f"valid: {_listed(d for d in divisors(width) if d <= 64)}"
        )
    room = layout.tp * layout.cp * layout.copies
    if room % (layout.ep * split):
        valid = [d for d in divisors(room) if room % (layout.ep * d) == 0 and width % d == 0]
        raise ConfigError(
            f"{named}: got {split} beside ep {layout.ep}; rule: ep x etp divides the {room} ranks "
            f"of tp x cp x dp; valid: --etp {_listed(valid)}"
        )


def _listed(valid: Iterable[int]) -> str:
    return ", ".join(map(str, valid))


def expert_split(layout: ParallelPlan) -> int:
    """Ranks that share one expert: tp unless stated."""
    return layout.tp if layout.etp is None else layout.etp


def expert_copies(layout: ParallelPlan) -> int:
    """Data-parallel ranks of the experts: what expert and expert-tensor ranks leave of a stage."""
    return layout.tp * layout.cp * layout.copies // (layout.ep * expert_split(layout))


def check_states(layout: ParallelPlan, stack: str) -> None:
    """Raise ConfigError unless ranks shard optimizer states or nothing, all of it on the GPU."""
    if layout.fsdp or layout.zero > 1:
        got = "fsdp" if layout.fsdp else f"zero {layout.zero}"
        raise ConfigError(f"zero: got {got} on stack {stack}; valid: 0, 1 (distributed optimizer)")
    if layout.reshard is not None:
        raise ConfigError(f"reshard: got {layout.reshard} on stack {stack}; rule: with --fsdp")
    if layout.offload != "none":
        raise NotInThisVersionError(
            f"offload: {layout.offload} on stack {stack} is not in this version; valid: none"
        )
    if layout.shard is None:
        return
    copies, experts = layout.copies * layout.cp, expert_copies(layout)
    valid = [d for d in divisors(copies) if experts % (copies // d) == 0]
    if layout.zero != 1 or layout.shard not in valid:
        raise ConfigError(
            f"shard: got {layout.shard} with zero {layout.zero}; rule: with zero 1, ranks of one of "
            f"several distributed optimizers; valid: {_listed(valid)}"
        )
