"""Stack megatron's micro-batch against real torch functions written from Transformer Engine's sources.

What is compared is when memory comes and goes: every allocation's bytes, in order, and what is freed
between it and the next. Whether a kernel's result has the size said here is not tested by this.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from memcalc.engine.make_plan import plan_of
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.training import TrainingSetup
from tests.oracle.support.megatron_functions import Parallel
from tests.oracle.support.megatron_model import Row, Shape, rows
from tests.oracle.support.megatron_rows import plan_rows

LLAMA = Shape(s=48, b=1, h=96, a=8, k=4, d=16, f=160, V=256)
GPT = replace(LLAMA, k=8, llama=False, dropout=0.1)


def engine_rows(shape: Shape) -> tuple[list[Row], int]:
    """The same of the engine, blocks written out; shape is one rank's."""
    tp, llama = shape.how.tp, shape.llama
    config = ModelConfig(
        name="tiny", model_type="llama", vocab_size=shape.V * tp, hidden_size=shape.h,
        intermediate_size=shape.f * tp, num_hidden_layers=shape.layers,
        num_attention_heads=shape.a * tp, num_key_value_heads=shape.k * tp, head_dim=shape.d,
        max_position_embeddings=shape.s, gated_mlp=llama,
        hidden_act="silu" if llama else "gelu",
        norm_type="rmsnorm" if llama else "layernorm",
        position_embedding="rope" if llama else "learned",
        num_position_rows=0 if llama else shape.s,
        attention_bias=not llama, attention_output_bias=not llama, mlp_bias=not llama,
        residual_dropout=shape.dropout,
    )  # fmt: skip
    setup = TrainingSetup(
        stack="megatron", seq_len=shape.s, micro_batch_size=shape.b, recompute=shape.recompute,
        loss="fused" if shape.fused_loss else "fp32", attention="cudnn",
    )  # fmt: skip
    plan = plan_of(config, setup, {"watched": True}, ParallelPlan(tp=tp, sp=shape.how.sp))
    return plan_rows(plan)


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("how", [Parallel(), Parallel(2), Parallel(2, True)], ids=str)
@pytest.mark.parametrize("base", [LLAMA, GPT], ids=["llama", "gpt"])
def test_every_event_of_a_micro_batch(base, how, recompute):
    """2 sizes an item, 36 in all."""
    for number, changes in enumerate(({}, {"b": 3, "fused_loss": False, "layers": 5})):
        shape = replace(base, how=how, recompute=recompute, **changes)
        theirs, forward = rows(shape)
        ours, mine = engine_rows(shape)
        assert mine == forward, (number, mine, forward)
        for index, (one, other) in enumerate(zip(ours[:-1], theirs[:-1], strict=False)):
            assert one == other, (number, index, forward)
        assert len(ours) == len(theirs)
