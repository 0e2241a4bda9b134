"""The engine asked the way a user asks it, for the model a reference decoder is.

`plan_of` turns a RefConfig and the options of `run_step` into ModelConfig, TrainingSetup and a plan,
so the comparison covers the product's own path; `random_config` draws reference models.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, fields
from typing import Any

from memcalc.engine.memory import StepMemory, step_memory
from memcalc.engine.plan import Plan, make_plan
from memcalc.engine.timeline import Instant
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.stacks import load_stack
from memcalc.inputs.training import TrainingSetup, resolve
from tests.oracle.support.reference import RefConfig
from tests.oracle.support.step import StepRecord, run_step

_PRECISIONS = {"bf16": "bf16", "mixed": "bf16-mixed", "fp32": "fp32"}
PHASES = ("forward", "loss", "backward", "optimizer")
RECOMPUTES = ("none", "selective", "sac", "sac-attention", "full", "full:N", "reentrant")
IMPLS = ("foreach", "fused", "loop")


@dataclass(frozen=True)
class How:
    """How a step runs beside the model itself: the options of `run_step`, fewer than it has."""

    optimizer: str = "adamw"
    impl: str = "foreach"
    accum: int = 1
    set_to_none: bool = True
    grad_clip: bool = False
    master: bool = False  # precision bf16-master; the model's is bf16


def model_of(cfg: RefConfig) -> ModelConfig:
    """The reference decoder in the words of a config."""
    gpt2 = cfg.is_gpt2
    return ModelConfig(
        name="reference",
        model_type="gpt2" if gpt2 else "llama",
        vocab_size=cfg.V,
        hidden_size=cfg.h,
        intermediate_size=cfg.f,
        num_hidden_layers=cfg.L,
        num_attention_heads=cfg.a,
        num_key_value_heads=cfg.a if gpt2 else cfg.k,
        head_dim=cfg.h // cfg.a if gpt2 else cfg.d,
        max_position_embeddings=max(cfg.s, cfg.max_positions),
        tie_word_embeddings=cfg.tied,
        hidden_act="gelu_new" if gpt2 else "silu",
        gated_mlp=not gpt2,
        norm_type="layernorm" if gpt2 or cfg.norm == "layer" else "rmsnorm",
        qk_norm="head" if cfg.qk_norm else "none",
        position_embedding="learned" if gpt2 else "rope",
        num_position_rows=cfg.max_positions if gpt2 else 0,
        fused_qkv=gpt2,
        attention_bias=gpt2 or cfg.attention_bias or cfg.qkv_bias,
        attention_output_bias=gpt2 or cfg.attention_bias,
        mlp_bias=gpt2 or cfg.mlp_bias,
        attention_dropout=cfg.attention_dropout,
        residual_dropout=cfg.dropout,
        embedding_dropout=cfg.dropout if gpt2 else 0.0,
    )


def setup_of(cfg: RefConfig, how: How = How()) -> TrainingSetup:
    """The setup a user would state for it."""
    recompute, _, layers = cfg.recompute.partition(":")
    reentrant = recompute == "reentrant"
    return TrainingSetup(
        seq_len=cfg.s,
        micro_batch_size=cfg.b,
        grad_accum_steps=how.accum,
        precision="bf16-master" if how.master else _PRECISIONS[cfg.precision],
        optimizer=how.optimizer,
        optimizer_impl=how.impl,
        set_to_none=how.set_to_none,
        grad_clip=how.grad_clip,
        recompute="full" if reentrant else recompute,
        recompute_layers=int(layers) if layers else None,
        reentrant=reentrant,
        attention=cfg.attention,
        loss=cfg.loss,
        loss_chunks=cfg.loss_chunks,
    )


def plan_of(cfg: RefConfig, how: How = How()) -> Plan:
    """The engine's plan for a reference model."""
    norm = {} if cfg.norm == "layer" or cfg.is_gpt2 else {"norm": cfg.norm}
    return make_plan(resolve(setup_of(cfg, how), model_of(cfg)), load_stack("torch"), norm)


def memory_of(cfg: RefConfig, how: How = How()) -> StepMemory:
    """The engine's memory of one step of a reference model."""
    return step_memory(plan_of(cfg, how))


def record_of(cfg: RefConfig, how: How = How()) -> StepRecord:
    """The same step run by PyTorch."""
    return run_step(
        cfg,
        optimizer=how.optimizer,
        impl=how.impl,
        accum=how.accum,
        set_to_none=how.set_to_none,
        grad_clip=1.0 if how.grad_clip else None,
        device="fake" if how.optimizer in ("sgd", "momentum") and how.impl == "fused" else "meta",
        quick=True,
        master=how.master,
    )


def place(instant: Instant) -> str:
    """An instant in the tracker's words: `3/gate_proj`, or the op alone outside the blocks."""
    return instant.op if instant.layer < 0 else f"{instant.layer}/{instant.op}"


def step_differences(cfg: RefConfig, how: How = How()) -> dict[str, tuple[Any, Any]]:
    """What the engine and PyTorch say differently of a step: {name: (engine, PyTorch)}.

    Bytes of each phase, of the step, saved for backward, of the parameters, and where each peaks.
    """
    ours, theirs = memory_of(cfg, how), record_of(cfg, how)
    pairs: dict[str, tuple[Any, Any]] = {
        "saved": (ours.saved_bytes, theirs.saved),
        "parameters": (ours.states.parameter_bytes, theirs.param_bytes),
        "peak": (ours.peak_bytes, max(theirs.peak, theirs.live_before + _gradients(theirs, how))),
        "phase": (ours.peak.phase, theirs.peak_at[0]),
    }
    for phase in PHASES:
        # An optimizer that only works in place makes no allocation, hence no peak of its own.
        known = theirs.phase_peaks.get(phase)
        if known is None or known.nbytes <= theirs.live_before + theirs.param_bytes * (
            phase == "optimizer"
        ):
            continue
        pairs[phase] = (ours.phases[phase], known.nbytes)
        pairs[f"{phase} at"] = (place(ours.instants[phase]), known.where)
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _gradients(theirs: StepRecord, how: How) -> int:
    """Gradients are in live_before where they are zeroed instead of dropped."""
    return theirs.param_bytes if how.set_to_none else 0


def random_config(rng: random.Random, **fixed: Any) -> RefConfig:
    """A small random reference model; dims of 1, odd lengths and every head grouping occur."""
    family = fixed.get("family", rng.choice(["llama", "gpt2"]))
    gpt2 = family == "gpt2"
    heads = rng.choice([1, 2, 4, 6])
    width = rng.choice([8, 16, 32, 64])
    layers = rng.choice([1, 1, 2, 3, 4, 5])
    drawn: dict[str, Any] = {
        "family": family,
        "b": rng.randint(1, 4),
        "s": rng.choice([16, 17, 33, 64, 100, 256]),
        "V": rng.choice([10, 101, 1000, 8000]),
        "h": heads * width if gpt2 else rng.choice([32, 64, 96, 320]),
        "L": layers,
        "a": heads,
        "k": heads if gpt2 else rng.choice([x for x in (1, 2, 3, heads) if heads % x == 0]),
        "d": width,
        "f": rng.choice([32, 176, 640]),
        "precision": rng.choice(["bf16", "mixed", "fp32"]),
        "norm": "layer" if gpt2 else rng.choice(["hand", "decomposed", "fused"]),
        "attention": rng.choice(["flash", "efficient", "cudnn", "eager"]),
        "loss": rng.choice(["plain", "fp32", "chunked"]),
        "loss_chunks": rng.choice([1, 2, 3, 4, 8]),
        "recompute": rng.choice(RECOMPUTES),
    }
    drawn |= fixed
    if drawn["recompute"] == "full:N":
        drawn["recompute"] = f"full:{rng.randint(1, drawn['L'])}"
    return RefConfig(**drawn)


def random_extras(rng: random.Random, cfg: RefConfig) -> dict[str, Any]:
    """Options beyond the plain decoder, some of them on: biases, norms of q and k, dropout, tying."""
    return {
        "attention_bias": rng.random() < 0.4,
        "qkv_bias": rng.random() < 0.3,
        "mlp_bias": rng.random() < 0.4,
        "qk_norm": not cfg.is_gpt2 and rng.random() < 0.4,
        "dropout": rng.choice([0.0, 0.1]),
        "attention_dropout": 0.1 if rng.random() < 0.3 else 0.0,
        "tied": rng.random() < 0.4,
    }


def random_how(rng: random.Random, **fixed: Any) -> How:
    """How the step runs, drawn."""
    drawn: dict[str, Any] = {
        "impl": rng.choice(IMPLS),
        "accum": rng.choice([1, 2]),
        "set_to_none": rng.random() < 0.7,
    }
    return How(**drawn | fixed)


def said(cfg: RefConfig) -> str:
    """What is not a default in a configuration, for a failure's message."""
    plain = RefConfig()
    parts = (
        f"{f.name}={getattr(cfg, f.name)}"
        for f in fields(cfg)
        if getattr(cfg, f.name) != getattr(plain, f.name)
    )
    return ", ".join(parts)
