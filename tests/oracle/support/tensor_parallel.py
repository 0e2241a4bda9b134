"""Random decoders and setups for ranks that split layers, and the engine beside PyTorch's own DTensor.

`disagreements` holds a rank's whole step: peaks and where they are, states, categories, saved bytes, and
every allocation of a micro-batch and of the optimizer with what is freed before the next.
"""

from __future__ import annotations

import random
from itertools import zip_longest
from typing import Any

from memcalc.engine.memory import optimizer_trace, step_memory
from memcalc.engine.optimizer import PARTIAL_GRADIENTS
from memcalc.engine.plan import Plan
from memcalc.harness.ranks.layout import Layout
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.training import TrainingSetup
from tests.oracle.support.data_parallel import (
    Row,
    differences,
    engine_plan,
    engine_rows,
    event_rows,
    torch_rows,
)
from tests.oracle.support.rank import RankTrace
from tests.oracle.support.rank_draw import RankSetup


def disagreements(case: RankSetup) -> dict[str, Any]:
    """What engine and PyTorch say differently of one rank's step: {name: (engine, PyTorch)}."""
    plan, trace = engine_plan(case), case.run()
    found: dict[str, Any] = dict(differences(plan, trace))
    ours = step_memory(plan)
    if ours.peak.name != trace.bytes.peak_at:
        found["peak at"] = (ours.peak.name, trace.bytes.peak_at)
    found |= events_apart(plan, trace)
    return found


def events_apart(plan: Plan, trace: RankTrace) -> dict[str, tuple[Any, Any]]:
    """Where their allocations, and what is freed before the next, differ first."""
    optimizer = optimizer_rows(plan)
    sums = [row for row in optimizer if row[2] == PARTIAL_GRADIENTS]
    pairs = {
        "micro-batch": ([*engine_rows(plan), *sums], torch_rows(trace)),
        "optimizer": (optimizer[len(sums) :], torch_optimizer_rows(trace)),
    }
    return {name: _first(*both) for name, both in pairs.items() if both[0] != both[1]}


def _first(ours: list[Row], theirs: list[Row]) -> tuple[Any, Any]:
    pairs = zip_longest(enumerate(ours), enumerate(theirs))
    return next(pair for pair in pairs if pair[0] != pair[1])


def optimizer_rows(plan: Plan) -> list[Row]:
    """What the optimizer allocates, after the sums of gradients that end the backward."""
    structure, runs = plan.structure(plan.keeps_gradients)
    trace = optimizer_trace(structure, runs, plan)
    sizes = trace.sizes(plan.values)
    events: list[tuple[int, str, str] | int] = []
    for event in trace.events:
        if event < 0:
            events.append(sizes[~event])
            continue
        op = trace.ops[event]
        phase = "backward" if op == PARTIAL_GRADIENTS else "optimizer"
        events.append((sizes[event], phase, op))
    return event_rows(events)


def torch_optimizer_rows(trace: RankTrace) -> list[Row]:
    """The same of PyTorch, the sums left out."""
    events = trace.of_phase("optimizer")
    return event_rows([(e.nbytes, e.phase, e.where) if e.nbytes > 0 else -e.nbytes for e in events])


def draw(seed: str, sharded: bool) -> RankSetup:
    """One setup, the same for the same seed. sharded: FSDP2 beside tensor parallelism.

    Models of one or two blocks: Llama's and GPT-2's shapes with biases, norms of q and k, placements
    of norms, windows, parallel blocks, caps, dropout; the setup is any that ranks can run.
    """
    rng = random.Random(seed)
    tp = rng.choice([2, 2, 4, 8])
    layout = Layout(tp=tp, sp=rng.random() < 0.6)
    if sharded:
        stated: dict[str, Any] = {"dp": rng.choice([2, 3, 8]), "fsdp": True}
        stated["reshard"] = rng.choice([None, True, False])
        if stated["dp"] == 8 and rng.random() < 0.3:
            stated["shard"] = rng.choice([2, 4])
        layout = Layout(tp=tp, sp=layout.sp, **stated)
    gpt2 = rng.random() < 0.3
    config = _gpt2(rng, tp) if gpt2 else _llama(rng, tp)
    norm = {} if config.norm_type == "layernorm" else {"norm": rng.choice(_NORMS)}
    setup = _setup(rng, config, layout)
    return RankSetup(config, setup, layout, norm, rank=rng.randrange(tp))


_NORMS = ("fused", "fused", "hand", "decomposed")


def _sizes(rng: random.Random, tp: int) -> dict[str, Any]:
    return {
        "vocab_size": tp * rng.choice([5, 13, 101]),
        "intermediate_size": tp * rng.choice([8, 33, 80]),
        "num_hidden_layers": rng.choice([1, 1, 1, 2]),
        "head_dim": rng.choice([8, 16, 32]),
        "max_position_embeddings": 1024,
        "tie_word_embeddings": rng.random() < 0.35,
        "attention_dropout": rng.choice([0, 0, 0.1]),
        "residual_dropout": rng.choice([0, 0, 0.1]),
        "final_logit_softcapping": 30.0 if rng.random() < 0.1 else None,
        "lm_head_bias": rng.random() < 0.1,
        "embedding_norm": rng.random() < 0.1,
        "embedding_scale": rng.random() < 0.1,
    }


def _gpt2(rng: random.Random, tp: int) -> ModelConfig:
    sizes, heads = _sizes(rng, tp), tp * rng.choice([1, 2, 3])
    return ModelConfig(
        name="gpt2", model_type="gpt2", hidden_size=heads * sizes["head_dim"],
        num_attention_heads=heads, num_key_value_heads=heads, hidden_act="gelu_new",
        gated_mlp=False, norm_type="layernorm", position_embedding="learned",
        num_position_rows=1024, fused_qkv=True, attention_bias=True, attention_output_bias=True,
        mlp_bias=True, embedding_dropout=rng.choice([0, 0.1]), **sizes,
    )  # fmt: skip


def _llama(rng: random.Random, tp: int) -> ModelConfig:
    groups = tp * rng.choice([1, 1, 2, 3])
    shape: dict[str, Any] = {"parallel_block": rng.random() < 0.12}
    if shape["parallel_block"]:
        shape["parallel_norms"] = rng.choice([1, 2])
    else:
        shape["norm_placement"] = rng.choice(["pre"] * 6 + ["post", "sandwich", "post-residual"])
    sizes = _sizes(rng, tp)
    if rng.random() < 0.1:
        shape["sliding_window"] = 8
        shape["layer_types"] = ("sliding", "full")[: sizes["num_hidden_layers"]]
    return ModelConfig(
        name="llama", model_type="llama", hidden_size=rng.choice([32, 64, 96]),
        num_attention_heads=groups * rng.choice([1, 2, 4]), num_key_value_heads=groups,
        hidden_act=rng.choice(["silu", "silu", "gelu", "relu"]),
        gated_mlp=rng.random() < 0.85,
        norm_type="layernorm" if rng.random() < 0.15 else "rmsnorm",
        qk_norm="head" if rng.random() < 0.35 else "none",
        rotary_dim=sizes["head_dim"] // 2 if rng.random() < 0.15 else None,
        attention_bias=rng.random() < 0.3, attention_output_bias=rng.random() < 0.2,
        mlp_bias=rng.random() < 0.2,
        attn_logit_softcapping=50.0 if rng.random() < 0.1 else None, **shape, **sizes,
    )  # fmt: skip


def _setup(rng: random.Random, config: ModelConfig, layout: Layout) -> TrainingSetup:
    optimizer = rng.choice(["adamw"] * 5 + ["sgd", "momentum", "momentum", "none"])
    impls = ["foreach", "foreach", "loop"] + (["fused"] if optimizer == "adamw" else [])
    recompute = rng.choice(["none", "none", "selective", "sac", "sac-attention", "full", "full:N"])
    precisions = ["fp32", "bf16", "bf16-mixed", "bf16-mixed", "fp16-mixed"]
    if optimizer != "none":
        precisions.append("bf16-master")
    return TrainingSetup(
        seq_len=layout.tp * rng.choice([1, 2, 6, 33]),
        micro_batch_size=rng.choice([1, 2, 3]),
        grad_accum_steps=rng.choice([1, 1, 1, 1, 1, 2]),
        precision=rng.choice(precisions),
        optimizer=optimizer,
        optimizer_impl=rng.choice(impls),
        set_to_none=rng.random() < 0.8,
        grad_clip=rng.random() < 0.3,
        recompute=recompute.partition(":")[0],
        recompute_layers=rng.randint(1, config.num_hidden_layers) if ":" in recompute else None,
        attention=rng.choice(["flash", "flash", "efficient", "cudnn", "eager"]),
        loss=rng.choice(["plain", "fp32", "fp32", "chunked"]),
        loss_chunks=2,
    )
