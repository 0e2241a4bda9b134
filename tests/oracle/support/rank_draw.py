"""Random setups of several ranks: FSDP2, tensor and sequence parallel, both together, and DDP.

Small models whose dims still differ from each other, so that no two tensors are mistaken for one.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from memcalc.engine.make_plan import plan_of
from memcalc.engine.plan import Plan
from memcalc.harness.ranks.layout import Layout
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.training import TrainingSetup
from tests.oracle.support.rank import RankTrace, run_rank
from tests.oracle.support.reference import RefConfig, model_of

KINDS = ("fsdp", "tp", "fsdp x tp", "ddp")
#: Kinds that are drawn only where they are asked for: FSDP2 over a part of the ranks, with and without TP.
MORE_KINDS = ("hsdp", "hsdp x tp")
WORLDS = (2, 8, 64)
PARTS = (2, 4, 8)


@dataclass(frozen=True)
class RankSetup:
    """One rank of one run. bucket_views: DDP's, as `run_rank` has it."""

    config: ModelConfig
    setup: TrainingSetup
    layout: Layout
    kernels: dict[str, Any] = field(default_factory=dict)
    rank: int = 0
    bucket_views: bool = True

    def plan(self) -> Plan:
        """The plan whose one-GPU step the ranks divide, tensors as a dispatch mode sees them."""
        return plan_of(self.config, self.setup, {"watched": True, **self.kernels})

    def run(self) -> RankTrace:
        """PyTorch's step of this rank."""
        return run_rank(
            self.config,
            self.setup,
            self.layout,
            kernels=self.kernels,
            rank=self.rank,
            bucket_views=self.bucket_views,
        )

    @property
    def name(self) -> str:
        """What tells it from others, for a failure's message."""
        config, setup, layout = self.config, self.setup, self.layout
        words = [
            f"{config.model_type} V{config.vocab_size} h{config.hidden_size} "
            f"f{config.intermediate_size} L{config.num_hidden_layers} "
            f"a{config.num_attention_heads} k{config.num_key_value_heads} d{config.head_dim}",
            f"b{setup.micro_batch_size} s{setup.seq_len} x{setup.grad_accum_steps}",
            f"{setup.precision} {setup.recompute} {setup.loss} {setup.optimizer_impl}",
            f"dp{layout.dp} tp{layout.tp}{' sp' * layout.sp}{' fsdp' * layout.fsdp}",
            f"shard {layout.shard} reshard {layout.reshard} rank {self.rank} {self.kernels}",
        ]
        extras = {"tied": config.tie_word_embeddings, "clip": setup.grad_clip,
                  "zeroed": not setup.set_to_none, "no views": not self.bucket_views}  # fmt: skip
        return ", ".join([*words, *(word for word, on in extras.items() if on)])


def draw_rank_setups(seed: int, n: int, kind: str | None = None) -> list[RankSetup]:
    """n setups, the same for the same seed; kinds in turn, or one of KINDS or MORE_KINDS alone.

    FSDP2 on 2, 8 and 64 ranks with every reshard_after_forward, TP and SP on 2, 4 and 8, FSDP2 x TP,
    DDP with and without bucket views; accumulation, checkpointing, precisions, norms and losses.
    """
    rng = random.Random(seed)
    return [_drawn(rng, kind or KINDS[number % len(KINDS)]) for number in range(n)]


def _drawn(rng: random.Random, kind: str) -> RankSetup:
    tp = rng.choice(PARTS) if "tp" in kind else 1
    layout = _layout(rng, kind, tp)
    model = _model(rng, tp)
    setup = _setup(rng, model, layout)
    norm = {} if model.norm_type == "layernorm" else {"norm": _norm(rng)}
    return RankSetup(
        config=model,
        setup=setup,
        layout=layout,
        kernels=norm,
        rank=rng.choice([0, 0, 0, layout.size - 1, rng.randrange(layout.size)]),
        bucket_views=kind != "ddp" or rng.random() < 0.7,
    )


def _norm(rng: random.Random) -> str:
    return rng.choice(["fused", "fused", "hand", "decomposed"])


def _layout(rng: random.Random, kind: str, tp: int) -> Layout:
    if kind == "ddp":
        return Layout(dp=rng.choice(WORLDS))
    sp = tp > 1 and rng.random() < 0.6
    if kind == "tp":
        return Layout(tp=tp, sp=sp)
    if "hsdp" in kind:
        dp = rng.choice(WORLDS)
        shard = rng.choice([n for n in (1, 2, 4, 8, 16, 32) if n < dp])
        return Layout(
            dp=dp, tp=tp, sp=sp, fsdp=True, shard=shard, reshard=rng.choice([None, False])
        )
    dp = rng.choice(WORLDS)
    smaller = [n for n in (2, 4, 8, 16, 32) if n < dp] if tp == 1 else []
    reshard = rng.choice(
        [None, True, True, False, False, *(rng.choice(smaller) for _ in smaller[:2])]
    )
    return Layout(dp=dp, tp=tp, sp=sp, fsdp=True, reshard=reshard)


def _model(rng: random.Random, tp: int) -> ModelConfig:
    gpt2 = rng.random() < 0.25
    heads = tp * rng.choice([1, 2, 3] if tp < 8 else [1, 2])
    width = rng.choice([8, 16, 32])
    groups = [k for k in range(tp, heads + 1, tp) if heads % k == 0]
    drawn: dict[str, Any] = {
        "family": "gpt2" if gpt2 else "llama",
        "V": tp * rng.choice([13, 101, 250, 1000]),
        "h": heads * width if gpt2 else rng.choice([32, 48, 64, 96, 200]),
        "L": rng.choice([1, 2, 3, 4]),
        "a": heads,
        "k": heads if gpt2 else rng.choice(groups),
        "d": width,
        "f": tp * rng.choice([24, 36, 80, 130]),
        "norm": "layer" if gpt2 else "fused",
        "tied": rng.random() < 0.3,
        "max_positions": rng.choice([256, 300]),
    }
    if not gpt2:
        drawn |= {"attention_bias": rng.random() < 0.2, "qkv_bias": rng.random() < 0.2,
                  "mlp_bias": rng.random() < 0.15, "qk_norm": rng.random() < 0.2}  # fmt: skip
    return model_of(RefConfig(**drawn))


def _setup(rng: random.Random, model: ModelConfig, layout: Layout) -> TrainingSetup:
    recompute = rng.choice(["none", "none", "full", "full", "full:N", "sac", "sac-attention"])
    layers = rng.randint(1, model.num_hidden_layers) if recompute == "full:N" else None
    return TrainingSetup(
        seq_len=layout.tp * rng.choice([2, 5, 8, 16]),
        micro_batch_size=rng.choice([1, 1, 2, 3]),
        grad_accum_steps=rng.choice([1, 1, 2, 3]),
        precision=rng.choice(["bf16-mixed", "bf16-mixed", "bf16", "fp32"]),
        optimizer_impl=rng.choice(["foreach", "foreach", "fused", "loop"]),
        set_to_none=rng.random() < 0.85,
        grad_clip=rng.random() < 0.2,
        recompute=recompute.partition(":")[0],
        recompute_layers=layers,
        attention=rng.choice(["flash", "flash", "efficient", "cudnn", "eager"]),
        loss=rng.choice(["fp32", "fp32", "plain", "chunked"]),
        loss_chunks=rng.choice([2, 3]),
    )
