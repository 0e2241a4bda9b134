"""The engine asked the way a user asks it, for the model a reference decoder is.

`random_config` draws models, `step_differences` says where engine and PyTorch disagree on a step.
"""

from __future__ import annotations

import random
from dataclasses import fields
from typing import Any

from memcalc.engine.memory import StepMemory, step_memory
from memcalc.engine.timeline import Instant
from tests.oracle.support.reference import DEFAULT, How, RefConfig, plan_of
from tests.oracle.support.step import StepRecord, run_step

PHASES = ("forward", "loss", "backward", "optimizer")
RECOMPUTES = ("none", "selective", "sac", "sac-attention", "full", "full:N", "reentrant")
IMPLS = ("foreach", "fused", "loop")


def memory_of(cfg: RefConfig, how: How = DEFAULT) -> StepMemory:
    """The engine's memory of one step of a reference model."""
    return step_memory(plan_of(cfg, how))


def record_of(cfg: RefConfig, how: How = DEFAULT) -> StepRecord:
    """The same step run by PyTorch."""
    fake = how.optimizer in ("sgd", "momentum") and how.impl == "fused"
    device, quick = "fake" if fake else "meta", not how.in_backward
    return run_step(cfg, how, device=device, quick=quick)


def place(instant: Instant) -> str:
    """An instant in the tracker's words: `3/gate_proj`, or the op alone outside the blocks."""
    return instant.op if instant.layer < 0 else f"{instant.layer}/{instant.op}"


def step_differences(cfg: RefConfig, how: How = DEFAULT) -> dict[str, tuple[Any, Any]]:
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
    """Gradients are in live_before where they are zeroed; stepped in backward, none stays."""
    return theirs.param_bytes if how.set_to_none and not how.in_backward else 0


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
