"""Stack megatron's experts against real torch functions written from Megatron's sources.

As in test_megatron_functions: every allocation's bytes, in order, and what is freed between it and the
next, for layouts of experts and every part of a sparse layer that backward can compute again.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from memcalc.engine.make_plan import plan_of
from memcalc.inputs.model import ModelConfig, MoeConfig
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.training import TrainingSetup
from tests.oracle.support.megatron_experts import Experts, SparseModel
from tests.oracle.support.megatron_functions import Parallel
from tests.oracle.support.megatron_model import Row, Shape, rows
from tests.oracle.support.megatron_rows import plan_rows


def shape_of(how: Parallel, recompute: str) -> Shape:
    return Shape(
        s=48, b=2, h=96, a=8, k=4, d=16, f=160, V=256, layers=4, how=how, recompute=recompute
    )


def engine_rows(shape: Shape, c: Experts) -> tuple[list[Row], int]:
    """The same of the engine; shape is one rank's."""
    tp = shape.how.tp
    moe = MoeConfig(
        num_experts=c.E, num_experts_per_tok=c.t, moe_intermediate_size=c.m * c.etp,
        sparse_layers=tuple(range(shape.layers)), shared_intermediate_size=c.n * tp,
        scoring="sigmoid" if c.sigmoid else "softmax", fp32_router=c.wide, normalize_top_k=True,
    )  # fmt: skip
    config = ModelConfig(
        name="tiny", model_type="mixtral", vocab_size=shape.V * tp, hidden_size=shape.h,
        intermediate_size=shape.f * tp, num_hidden_layers=shape.layers,
        num_attention_heads=shape.a * tp, num_key_value_heads=shape.k * tp, head_dim=shape.d,
        max_position_embeddings=shape.s, moe=moe,
    )  # fmt: skip
    setup = TrainingSetup(
        stack="megatron", seq_len=shape.s, micro_batch_size=shape.b, loss="fused",
        recompute="selective" if c.recompute else shape.recompute,
        recompute_modules=c.recompute, attention="cudnn", pad_to_capacity=c.capacity == "pad",
        capacity_factor=None if c.capacity == "none" else 1.25,
    )  # fmt: skip
    layout = ParallelPlan(tp=tp, sp=shape.how.sp, ep=c.ep, etp=c.etp, dp=c.ep * c.etp)
    return plan_rows(plan_of(config, setup, {"watched": True}, layout))


CASES = {
    "every expert": Experts(),
    "some experts": Experts(ep=4),
    "one expert": Experts(ep=8),
    "divided experts": Experts(ep=2, etp=2),
    "sigmoid, shared": Experts(ep=2, sigmoid=True, n=24),
    "fp32 router, divided": Experts(ep=4, etp=2, sigmoid=True, wide=True),
    "activation": Experts(ep=2, recompute=("moe_act",)),
    "norm": Experts(ep=2, n=24, recompute=("layernorm",)),
    "shared experts": Experts(n=24, recompute=("shared_experts",)),
    "the mixture": Experts(ep=4, n=24, recompute=("moe",)),
    "dropped rows": Experts(ep=4, capacity="drop"),
    "padded rows": Experts(ep=4, capacity="pad"),
    "padded rows, every expert": Experts(capacity="pad"),
    "padded rows, divided": Experts(ep=2, etp=2, capacity="pad"),
    "norm and activation": Experts(ep=4, recompute=("moe_act", "layernorm")),
}


@pytest.mark.parametrize("how", [Parallel(), Parallel(2, True)], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_every_event_of_a_micro_batch_with_experts(name, how):
    """Layouts, capacities and recomputed parts, whole and divided over tensor parallelism: 30."""
    compare(shape_of(how, "none"), CASES[name])


def test_every_event_under_full_recomputation():
    compare(shape_of(Parallel(2, True), "full"), CASES["sigmoid, shared"])


@pytest.mark.parametrize("seed", range(12))
def test_every_event_of_drawn_sparse_models(seed):
    """Shapes, layouts, routers and recomputed parts drawn together."""
    draw = random.Random(seed)
    how = draw.choice([Parallel(), Parallel(2, True), Parallel(4, True)])
    modules = [
        m for m in ("moe_act", "layernorm", "shared_experts", "core_attn") if draw.random() < 0.4
    ]
    width = draw.choice([0, 24])
    if not width and "shared_experts" in modules:
        modules.remove("shared_experts")
    experts = Experts(
        E=16, t=draw.choice([1, 2, 3]), m=draw.choice([8, 40]), n=width,
        ep=draw.choice([1, 2, 8, 16]), etp=draw.choice([1, 2]), sigmoid=draw.random() < 0.5,
        wide=draw.random() < 0.5, recompute=tuple(modules),
        capacity=draw.choice(["none", "none", "drop", "pad"]),
    )  # fmt: skip
    shape = shape_of(how, "selective" if "core_attn" in modules else "none")
    compare(replace(shape, b=draw.choice([1, 2, 3]), layers=draw.choice([1, 2, 5])), experts)


def compare(shape: Shape, experts: Experts) -> None:
    tokens = shape.s * shape.b // (shape.how.tp if shape.how.sp else 1)
    experts = replace(experts, C=-(-tokens * experts.t * 5 // (4 * experts.E)))
    theirs, forward = rows(shape, SparseModel(shape, experts))
    ours, mine = engine_rows(shape, experts)
    for index, (one, other) in enumerate(zip(ours[:-1], theirs[:-1], strict=False)):
        assert one == other, (index, forward, mine)
    assert len(ours) == len(theirs)
    assert mine == forward
