"""Which models and setups a layout can run: what must divide what, and what is not split yet.

Every refusal is one line: what was got, the rule, and what is valid for this model.
Checked by: harness/test_layout.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from memcalc.engine.plan import Plan
from memcalc.errors import ConfigError
from memcalc.harness.ranks.layout import Layout, divisors
from memcalc.inputs.model import ModelConfig

#: Optimizers whose update of a parameter reads more of it than one rank holds.
_WHOLE_MATRICES = ("muon", "adafactor")


def check_layout(layout: Layout, plan: Plan) -> None:
    """Raise ConfigError unless this layout can run this plan."""
    _check_code(layout, plan)
    if layout.tp > 1:
        _check_tensor_parallel(layout, plan)
    if layout.pp > 1:
        _check_pipeline(layout, plan)


def _check_code(layout: Layout, plan: Plan) -> None:
    """What no division runs: other people's code, compiled code, updates of whole matrices."""
    setup, sharded = plan.resolved.setup, layout.fsdp or layout.tp > 1
    if plan.kernels.hf:
        raise ConfigError("stack: got 'hf', whose code is transformers'; valid to run: torch")
    if plan.kernels.compiled:
        raise ConfigError(
            "compile: got compiled blocks on ranks; rule: eager code; valid: --stack torch"
        )
    if not sharded:
        return
    what = "fsdp" if layout.fsdp else "tp"
    if plan.kernels.fp8_linear:
        raise ConfigError(f"precision: got fp8-mixed with {what}; valid: bf16-mixed, bf16, fp32")
    if plan.optimizer.name in _WHOLE_MATRICES:
        raise ConfigError(
            f"optimizer: got {plan.optimizer.name} with {what}; rule: it reads whole matrices, and "
            "a rank has a part; valid: adamw, sgd, momentum, none"
        )
    if setup.reentrant:
        raise ConfigError(f"reentrant: got true with {what}; rule: checkpoints that are not")


def _check_tensor_parallel(layout: Layout, plan: Plan) -> None:
    config = plan.config
    for what in _not_split(config):
        raise ConfigError(f"tp: got {layout.tp} for {config.name}; rule: {what}; valid: 1")
    if plan.kernels.loss == "fused":
        raise ConfigError(
            f"loss: got fused with tp {layout.tp}; rule: it works on whole rows of logits; "
            "valid: plain, fp32, chunked"
        )
    rules = _divided(config)
    valid = [
        t for t in divisors(config.num_attention_heads) if all(n % t == 0 for n in rules.values())
    ]
    for name, number in rules.items():
        if number % layout.tp:
            raise ConfigError(
                f"tp: got {layout.tp}; rule: divides {name} = {number:,}; "
                f"valid: {', '.join(map(str, valid))}{_padded(name, number, layout.tp)}"
            )
    if layout.sp and plan.resolved.seq_len % layout.tp:
        seq = plan.resolved.seq_len
        near = max(1, seq // layout.tp) * layout.tp
        raise ConfigError(
            f"seq: got {seq} with sp over {layout.tp} ranks; rule: a multiple of {layout.tp}; "
            f"nearest valid: {near}"
        )


def _divided(config: ModelConfig) -> dict[str, int]:
    """The dims tensor parallelism cuts."""
    return {
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "intermediate_size": config.intermediate_size,
        "vocab_size": config.vocab_size,
    }


def _padded(name: str, number: int, tp: int) -> str:
    """How to pad a vocabulary that does not divide."""
    if name != "vocab_size":
        return ""
    return f"; or --set model.vocab_size={-(-number // tp) * tp}"


def _not_split(config: ModelConfig) -> Iterator[str]:
    """Parts of a model that have no split over heads or columns here."""
    if config.moe is not None:
        yield "experts are not split over ranks"
    if config.mla is not None:
        yield "latent attention is not split over ranks"
    if config.position_embedding in ("alibi", "relative"):
        yield f"{config.position_embedding} positions differ from head to head"
    if config.attention_sinks:
        yield "attention sinks differ from head to head"
    if config.qk_norm == "full":
        yield "q and k are normed over all heads"
    if config.word_embed_proj_dim is not None:
        yield "an embedding narrower than hidden_size is not split over ranks"


def _check_pipeline(layout: Layout, plan: Plan) -> None:
    config, accum = plan.config, plan.resolved.grad_accum_steps
    if layout.pp > config.num_hidden_layers:
        raise ConfigError(
            f"pp: got {layout.pp}; rule: a block for each stage; valid: 1 to "
            f"{config.num_hidden_layers}, the layers of {config.name}"
        )
    if config.tie_word_embeddings:
        raise ConfigError(
            f"pp: got {layout.pp} for {config.name}, whose head is its embedding; rule: they are "
            "on different stages; valid: 1, or --set model.tie_word_embeddings=false"
        )
    if layout.schedule == "1f1b" and accum < layout.pp:
        raise ConfigError(
            f"grad-accum: got {accum}; rule: for 1f1b at least the {layout.pp} stages, a "
            f"micro-batch each; valid: {layout.pp} and more, or --schedule gpipe"
        )
    if plan.resolved.setup.reentrant:
        raise ConfigError("reentrant: got true with pp; rule: checkpoints that are not")
