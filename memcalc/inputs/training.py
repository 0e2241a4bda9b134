"""TrainingSetup: what a user states about a training run, validated, in the contract's names.

Nothing here knows a byte. `resolve` fills what was left open from the model (sequence length) and the
numbers that follow from each other (global batch), so that every result can show its whole setup.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from memcalc.errors import ConfigError, NotInThisVersionError
from memcalc.inputs.lengths import sequence_notes, target_length
from memcalc.inputs.model import ModelConfig, check_choice, check_dim, check_rate
from memcalc.inputs.peft import PeftSetup
from memcalc.inputs.stacks import base_of, check_stack
from memcalc.inputs.training_names import (
    ATTENTIONS,
    CLOSED_FORM_OPTIMIZERS,
    COMPILED_STACKS,
    FIXED_IMPL,
    LOSSES,
    OPTIMIZER_IMPLS,
    OPTIMIZERS,
    PRECISIONS,
    RECOMPUTE,
    RECOMPUTE_MODULES,
)

_MAX_TOKENS = 1 << 40


@dataclass(frozen=True, kw_only=True)
class TrainingSetup:
    """One training step's settings. Raises ConfigError with what, got, rule, nearest valid.

    seq_len None: min(2048, the model's maximum). global_batch: sequences of an optimizer step over all
    ranks; any two of it, micro_batch_size and grad_accum_steps give the third. compile: each block
    under torch.compile, which makes stack torch the stack torch-compile. imbalance: token rows of the
    rank whose experts receive most, over the mean. capacity_factor: rows an expert takes at most, over
    the mean; pad_to_capacity: it takes as many whatever comes. recompute_modules: what recompute
    selective means on stack megatron (core_attn unless stated). peft: what trains, where not every
    parameter does. target_seq_len: tokens of an encoder-decoder's decoder; seq_len are its encoder's, and
    the tokens that rates and FLOPs are counted by.
    Checked by: unit/test_training_setup.py.
    """

    seq_len: int | None = None
    micro_batch_size: int | None = None
    grad_accum_steps: int | None = None
    global_batch: int | None = None
    precision: str = "bf16-mixed"
    optimizer: str = "adamw"
    optimizer_impl: str | None = None
    optimizer_dtype: str | None = None
    set_to_none: bool = True
    grad_clip: bool = False
    dropout: float | None = None
    recompute: str = "none"
    recompute_layers: int | None = None
    recompute_modules: tuple[str, ...] = ()
    reentrant: bool = False
    attention: str = "flash"
    loss: str | None = None
    loss_chunks: int = 8
    stack: str = "torch"
    compile: bool = False
    optimizer_in_backward: bool = False
    num_layers: int | None = None
    imbalance: float = 1.0
    capacity_factor: float | None = None
    pad_to_capacity: bool = False
    separate_labels: bool = False
    peft: PeftSetup | None = None
    target_seq_len: int | None = None

    def __post_init__(self) -> None:
        for name in (
            "seq_len", "micro_batch_size", "grad_accum_steps", "global_batch", "target_seq_len",
        ):  # fmt: skip
            if getattr(self, name) is not None:
                check_dim(name, getattr(self, name))
        for name in ("recompute_layers", "num_layers"):
            if getattr(self, name) is not None:
                check_dim(name, getattr(self, name))
        check_choice("precision", self.precision, PRECISIONS)
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_choice("recompute", self.recompute, RECOMPUTE)
        check_choice("attention", self.attention, ATTENTIONS)
        check_stack(self.stack)
        if self.loss is not None:
            check_choice("loss", self.loss, LOSSES)
        if self.optimizer_dtype is not None:
            check_choice("optimizer_dtype", self.optimizer_dtype, ("fp32", "bf16"))
        if self.dropout is not None:
            check_rate("dropout", self.dropout)
        self._check_combinations()

    @property
    def base(self) -> str:
        """The shipped stack whose rules hold: the stack itself, or what a file of one's own is based on."""
        return base_of(self.stack)

    @property
    def code(self) -> str:
        """The stack whose code runs: torch with its blocks compiled is torch-compile."""
        return "torch-compile" if self.compile and self.stack == "torch" else self.stack

    def _check_combinations(self) -> None:
        if self.optimizer_impl is not None:
            check_choice("optimizer_impl", self.optimizer_impl, OPTIMIZER_IMPLS)
        if self.optimizer == "adafactor" and self.optimizer_impl == "fused":
            raise ConfigError(
                "optimizer_impl: got 'fused' with adafactor, which has none; valid: foreach, loop"
            )
        if self.recompute_layers is not None and self.recompute != "full":
            raise ConfigError(
                f"recompute_layers: got {self.recompute_layers} with recompute={self.recompute!r}; "
                "rule: only full:N takes a number of blocks"
            )
        self._check_modules()
        if self.reentrant and self.recompute != "full":
            raise ConfigError(
                f"reentrant: got true with recompute={self.recompute!r}; rule: recompute=full"
            )
        if self.compile and self.base == "torch" and self.stack != "torch":
            rule = 'base = "torch-compile" in that file'
            raise ConfigError(f"compile: got stack {self.stack}; rule: {rule}")
        if self.compile and self.base not in COMPILED_STACKS:
            raise NotInThisVersionError(
                f"compile: with stack {self.stack!r} it is not in this version; valid: "
                f"{', '.join(COMPILED_STACKS)}"
            )
        if self.optimizer_in_backward:
            self._check_in_backward()
        if not 1 <= self.imbalance <= 1024:
            raise ConfigError(f"imbalance: got {self.imbalance}; rule: 1 <= factor <= 1024")
        self._check_capacity()
        check_dim("loss_chunks", self.loss_chunks)
        if self.loss_chunks > 64:
            raise ConfigError(f"loss_chunks: got {self.loss_chunks}; rule: at most 64")

    def _check_modules(self) -> None:
        for module in self.recompute_modules:
            check_choice("recompute_modules", module, RECOMPUTE_MODULES)
        if self.recompute_modules and (self.recompute, self.base) != ("selective", "megatron"):
            raise ConfigError(
                f"recompute_modules: got {','.join(self.recompute_modules)} with recompute "
                f"{self.recompute} on stack {self.stack}; rule: recompute selective on stack megatron"
            )

    def _check_capacity(self) -> None:
        factor = self.capacity_factor
        if factor is None:
            if self.pad_to_capacity:
                raise ConfigError("pad_to_capacity: got no capacity_factor; rule: beside one")
            return
        if not 0 < factor <= 1024:
            raise ConfigError(f"capacity_factor: got {factor}; rule: 0 < factor <= 1024")
        if self.base != "megatron":
            raise ConfigError(
                f"capacity_factor: got {factor} on stack {self.stack}, whose experts drop no rows; "
                "valid: --stack megatron"
            )

    def _check_in_backward(self) -> None:
        """A parameter stepped alone, once its only gradient is there: no sums, no norm over all."""
        clashes = {
            "grad_clip": self.grad_clip,
            "grad_accum_steps above 1": (self.grad_accum_steps or 1) > 1,
            "set_to_none false": not self.set_to_none,
            "reentrant recomputation": self.reentrant,
        }
        for what, present in clashes.items():
            if present:
                raise ConfigError(
                    f"optimizer_in_backward: got {what}; rule: each parameter is stepped as soon as "
                    "its gradient is there; nearest valid: without it"
                )


class ResolvedSetup(NamedTuple):
    """A TrainingSetup with nothing left open, and the model it is for (truncated if asked)."""

    setup: TrainingSetup
    config: ModelConfig
    seq_len: int
    micro_batch_size: int
    grad_accum_steps: int
    optimizer_impl: str
    notes: tuple[str, ...] = ()
    target_len: int = 0  # positions of an encoder-decoder's decoder

    @property
    def tokens(self) -> int:
        """Tokens of one micro-batch; of an encoder-decoder those of the source."""
        return self.micro_batch_size * self.seq_len


def resolve(setup: TrainingSetup, config: ModelConfig, copies: int = 1) -> ResolvedSetup:
    """Fill defaults, truncate the model, check what only shows with the model at hand.

    copies: data-parallel ranks, which split the global batch.
    """
    notes: list[str] = list(config.notes)
    if setup.num_layers is not None:
        config, truncated = truncate(config, setup.num_layers)
        notes += truncated
    if setup.dropout is not None:
        config = replace(
            config,
            residual_dropout=setup.dropout,
            embedding_dropout=setup.dropout if config.embedding_dropout else 0.0,
            attention_dropout=setup.dropout if config.attention_dropout else 0.0,
        )
    seq = setup.seq_len or min(2048, config.max_position_embeddings)
    notes += sequence_notes(config, seq)
    target, said = target_length(setup.target_seq_len, config, seq)
    notes += said
    micro, accum = _batch(setup, copies)
    if micro * seq > _MAX_TOKENS:
        raise ConfigError(
            f"micro-batch x seq: got {micro} x {seq} tokens, beyond any real run; rule: at most 2^40"
        )
    if setup.recompute_layers is not None and setup.recompute_layers > config.num_hidden_layers:
        raise ConfigError(
            f"recompute: got full:{setup.recompute_layers}; rule: at most the "
            f"{config.num_hidden_layers} layers of {config.name}"
        )
    impl = FIXED_IMPL.get(setup.optimizer, setup.optimizer_impl or "foreach")
    if setup.optimizer in FIXED_IMPL and setup.optimizer_impl not in (None, impl):
        notes.append(f"optimizer-impl {setup.optimizer_impl} has no effect on {setup.optimizer}")
    if setup.optimizer in CLOSED_FORM_OPTIMIZERS:
        notes.append(f"{setup.optimizer}: a closed form, not compared with a running library")
    if config.moe is None:
        stated = {"imbalance": setup.imbalance, "capacity-factor": setup.capacity_factor or 1.0}
        notes += [
            f"{name} {value:g} has no effect: {config.name} has no experts"
            for name, value in stated.items()
            if value != 1.0
        ]
    return ResolvedSetup(
        setup=setup, config=config, seq_len=seq, micro_batch_size=micro, grad_accum_steps=accum,
        optimizer_impl=impl, notes=tuple(notes), target_len=target,
    )  # fmt: skip


def _batch(setup: TrainingSetup, copies: int) -> tuple[int, int]:
    """(micro-batch, accumulation steps) from any two of micro, accumulation and global batch."""
    micro, accum, total = setup.micro_batch_size, setup.grad_accum_steps, setup.global_batch
    if total is None:
        return micro or 1, accum or 1
    over = f" x {copies} copies" if copies > 1 else ""
    if micro is not None and accum is not None:
        if micro * accum * copies != total:
            raise ConfigError(
                f"global-batch: got {total}; rule: micro-batch x grad-accum{over} = "
                f"{micro * accum * copies}"
            )
        return micro, accum
    known, name = (micro, "micro-batch") if micro is not None else (accum or 1, "grad-accum")
    step = known * copies
    if total % step:
        near = max(step, round(total / step) * step)
        raise ConfigError(
            f"global-batch: got {total}; rule: a multiple of {name}{over} = {step}; "
            f"nearest valid: {near}"
        )
    if micro is not None:
        return micro, total // step
    return total // step, known


def truncate(config: ModelConfig, layers: int) -> tuple[ModelConfig, list[str]]:
    """The first `layers` blocks of a model, of an encoder-decoder those of each half."""
    if layers > config.num_hidden_layers:
        raise ConfigError(
            f"layers: got {layers}; rule: at most {config.num_hidden_layers}, those of {config.name}"
        )
    moe = config.moe
    if moe is not None:
        moe = replace(moe, sparse_layers=tuple(i for i in moe.sparse_layers if i < layers))
    shorter = replace(
        config, num_hidden_layers=layers, layer_types=config.layer_types[:layers], moe=moe,
        num_encoder_layers=min(layers, config.num_encoder_layers),
    )  # fmt: skip
    return shorter, [f"truncated to {layers} of {config.num_hidden_layers} layers"]
