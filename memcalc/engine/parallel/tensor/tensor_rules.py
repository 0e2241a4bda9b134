"""Which models and setups PyTorch's DTensor can divide over ranks, as the plain decoder uses it.

The same rules hold for an estimate (stack torch) and for a run (memcalc/harness/ranks). Every refusal is
one line: what was got, the rule, what is valid for this model.
Checked by: harness/test_layout.py, unit/test_tensor_rules.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from memcalc.errors import ConfigError, NotInThisVersionError
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.parallel import ParallelPlan, divisors

if TYPE_CHECKING:
    from memcalc.engine.plan import Plan

#: Optimizers whose update of a parameter reads more of it than one rank holds.
_WHOLE_MATRICES: Final = ("muon", "adafactor")


def check_parts(plan: Plan, what: str) -> None:
    """Raise ConfigError for what runs on no part of a parameter; what: "fsdp" or "tp"."""
    setup, optimizer = plan.resolved.setup, plan.optimizer
    if plan.kernels.fp8_linear and (what == "tp" or plan.kernels.traits.code != "torchtitan"):
        raise ConfigError(f"precision: got fp8-mixed with {what}; valid: bf16-mixed, bf16, fp32")
    if optimizer.name in _WHOLE_MATRICES:
        raise ConfigError(
            f"optimizer: got {optimizer.name} with {what}; rule: it reads whole matrices, and "
            "a rank has a part; valid: adamw, sgd, momentum, none"
        )
    if optimizer.impl == "fused" and optimizer.name in ("sgd", "momentum"):
        raise ConfigError(
            f"optimizer-impl: got fused for {optimizer.name} with {what}; rule: PyTorch 2.13 has no "
            "fused SGD of parameters that ranks share; valid: foreach, loop"
        )
    if setup.reentrant:
        raise ConfigError(f"reentrant: got true with {what}; rule: checkpoints that are not")


def check_dtensor(tp: int, sp: bool, plan: Plan) -> None:
    """Raise ConfigError unless tp ranks can share the layers of a plan's decoder."""
    config = plan.config
    check_parts(plan, "tp")
    for what in _not_split(config):
        raise NotInThisVersionError(
            f"tp: got {tp} for {config.name}; rule: {what}; valid: 1{_elsewhere(config)}"
        )
    if plan.kernels.traits.fused_gate_up and config.gated_mlp:
        raise ConfigError(
            f"kernels.fused_gate_up: got true with tp {tp}; rule: gate and up are split each for "
            "itself; valid: false"
        )
    if plan.kernels.loss == "fused":
        raise ConfigError(
            f"loss: got fused with tp {tp}; rule: it works on whole rows of logits; "
            "valid: plain, fp32, chunked"
        )
    _check_divided(tp, config)
    seq = plan.resolved.seq_len
    if sp and seq % tp:
        near = max(1, seq // tp) * tp
        raise ConfigError(
            f"seq: got {seq} with sp over {tp} ranks; rule: a multiple of {tp}; "
            f"nearest valid: {near}"
        )


def _check_divided(tp: int, config: ModelConfig) -> None:
    """tp divides heads, key/value heads, columns of the MLP and the vocabulary."""
    for name, number in _divided(config).items():
        if number % tp:
            raise ConfigError(
                f"tp: got {tp}; rule: divides {name} = {number:,}; "
                f"valid: {', '.join(map(str, _degrees(config)))}{_padded(name, number, tp)}"
            )


def _divided(config: ModelConfig) -> dict[str, int]:
    """What tp divides of a model."""
    names = ("num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size")
    return {name: int(getattr(config, name)) for name in names}


def _degrees(config: ModelConfig) -> list[int]:
    """Every tp a model can be divided by."""
    numbers = _divided(config).values()
    return [t for t in divisors(config.num_attention_heads) if all(n % t == 0 for n in numbers)]


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


def _elsewhere(config: ModelConfig) -> str:
    """The stack that splits what DTensor does not here."""
    return ", or --stack megatron" if config.moe or config.mla else ""


def refuse_copies(tp: int, dp: int, cp: int = 1, config: ModelConfig | None = None) -> ConfigError:
    """The error for parts of layers beside DDP over dp x cp ranks. config: the model, where known."""
    more = tp * dp
    fits = cp == 1 and (config is None or more in _degrees(config))
    beside = f"dp {dp} x cp {cp}" if cp > 1 else f"dp {dp}"
    return ConfigError(
        f"tp: got {tp} with {beside} and no fsdp; rule: DDP takes no split parameters; "
        f"valid: --fsdp{f', or --tp {more}' if fits else ''}"
    )


def dtensor_notes(layout: ParallelPlan, config: ModelConfig) -> tuple[str, ...]:
    """What a reader would not expect of a rank's states."""
    if layout.zero > 1 or config.tie_word_embeddings:
        return ()
    return (
        f"tp {layout.tp}: the embedding's gradient has the rows of all ranks on each of them "
        "(DTensor); --fsdp cuts it",
    )


def check_kept(reshard: bool | int | None, tp: int, ranks: int) -> None:
    """Raise ConfigError where parameters that tp splits would be kept on some of the sharding ranks."""
    if reshard is None or isinstance(reshard, bool):
        return
    if tp > 1 and 1 < reshard < ranks:
        raise ConfigError(
            f"reshard: got {reshard} with tp {tp}; rule: PyTorch keeps no parameters that "
            "tp splits on fewer ranks; valid: true, false"
        )
