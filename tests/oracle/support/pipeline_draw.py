"""Random setups of pipelines under PyTorch's schedules, small enough to trace every rank."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from memcalc.engine.make_plan import plan_of
from memcalc.engine.parallel.pipeline.schedules import SPLIT_BACKWARD
from memcalc.engine.plan import Plan
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.parallel import CHUNKED_SCHEDULES, ParallelPlan
from memcalc.inputs.training import TrainingSetup
from tests.oracle.support.reference import RefConfig, model_of


@dataclass(frozen=True)
class PipelineSetup:
    """One pipeline."""

    config: ModelConfig
    setup: TrainingSetup
    layout: ParallelPlan
    kernels: dict[str, Any] = field(default_factory=dict)

    def plan(self) -> Plan:
        """The plan, tensors as a dispatch mode sees them."""
        return plan_of(self.config, self.setup, {"watched": True, **self.kernels}, self.layout)

    @property
    def name(self) -> str:
        """What tells it from others, for a failure's message."""
        config, setup, layout = self.config, self.setup, self.layout
        return (
            f"{layout.schedule} pp{layout.pp} vpp{layout.vpp} stages {layout.stage_layers} "
            f"x{setup.grad_accum_steps}; {config.model_type} V{config.vocab_size} "
            f"h{config.hidden_size} L{config.num_hidden_layers}; b{setup.micro_batch_size} "
            f"s{setup.seq_len} {setup.precision} {setup.recompute} {setup.recompute_layers} "
            f"{setup.loss} {setup.optimizer_impl} none {setup.set_to_none} clip {setup.grad_clip} "
            f"{setup.attention} {self.kernels}"
        )


def draw_pipelines(seed: int, n: int, schedule: str) -> list[PipelineSetup]:
    """n setups of a schedule, the same for the same seed: even and uneven stages, ends without blocks."""
    rng = random.Random(f"{seed} {schedule}")
    return [_drawn(rng, schedule) for _ in range(n)]


def _drawn(rng: random.Random, schedule: str) -> PipelineSetup:
    pp = rng.choice([2, 2, 3, 4])
    vpp = rng.choice([2, 3]) if schedule == "interleaved" else CHUNKED_SCHEDULES.get(schedule) or 1
    chunks = pp * vpp
    counts = [rng.choice([1, 1, 2, 3] if chunks < 4 else [1, 1, 2]) for _ in range(chunks)]
    if rng.random() < 0.4:
        counts[rng.choice([0, -1])] = 0
    model = _model(rng, sum(counts))
    layout = ParallelPlan(pp=pp, vpp=vpp, schedule=schedule, stage_layers=tuple(counts))
    setup = _setup(rng, layout, sum(counts))
    norms = (
        ["hand"] if schedule in SPLIT_BACKWARD else ["fused", "hand"]
    )  # rank_norm.py knows no halves
    norm = {} if model.norm_type == "layernorm" else {"norm": rng.choice(norms)}
    return PipelineSetup(model, setup, layout, norm)


def _model(rng: random.Random, layers: int) -> ModelConfig:
    gpt2 = rng.random() < 0.25
    heads, width = rng.choice([2, 4]), rng.choice([8, 16])
    return model_of(
        RefConfig(
            family="gpt2" if gpt2 else "llama",
            V=rng.choice([101, 250, 1000]),
            h=heads * width if gpt2 else rng.choice([32, 48, 96]),
            L=layers,
            a=heads,
            k=heads if gpt2 else heads // rng.choice([1, 2]),
            d=width,
            f=rng.choice([24, 80, 130]),
            norm="layer" if gpt2 else "fused",
            max_positions=64,
            tied=False,
        )
    )


def _setup(rng: random.Random, layout: ParallelPlan, layers: int) -> TrainingSetup:
    recompute = rng.choice(["none", "none", "full", "full:N", "sac"])
    halves = layout.schedule in SPLIT_BACKWARD
    if halves:
        recompute = "none"
    several = layout.schedule not in ("gpipe", "1f1b")
    rounds = layout.pp * rng.choice([1, 1, 2])
    least = layout.chunks if layout.schedule == "dualpipe" else layout.pp
    batches = rounds if several else layout.pp + rng.choice([0, 1, 2])
    return TrainingSetup(
        seq_len=rng.choice([8, 13, 16]),
        micro_batch_size=rng.choice([1, 2, 3]),
        grad_accum_steps=max(batches, least),
        precision=rng.choice(["bf16-mixed", "bf16-mixed", "bf16", "fp32"]),
        optimizer_impl=rng.choice(["foreach", "foreach", "fused", "loop"]),
        set_to_none=rng.random() < 0.85,
        recompute=recompute.partition(":")[0],
        recompute_layers=rng.randint(1, layers) if recompute == "full:N" else None,
        attention=rng.choice(["flash", "efficient", "eager"]),
        loss=rng.choice(["fp32", "plain", "plain" if halves else "chunked"]),
        loss_chunks=2,
    )
