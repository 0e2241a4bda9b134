"""Stack megatron's latent attention against real torch functions written from Megatron's sources.

As in test_megatron_functions: every allocation's bytes, in order, and what is freed before the next.
"""

from __future__ import annotations

import pytest

from memcalc.engine.make_plan import plan_of
from memcalc.inputs.model import MlaConfig, ModelConfig
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.training import TrainingSetup
from tests.oracle.support.megatron_functions import Parallel
from tests.oracle.support.megatron_latent import Latent, LatentModel
from tests.oracle.support.megatron_model import Row, Shape, rows
from tests.oracle.support.megatron_rows import plan_rows


def engine_rows(shape: Shape, m: Latent) -> tuple[list[Row], int]:
    """The same of the engine; shape is one rank's."""
    tp = shape.how.tp
    mla = MlaConfig(
        kv_lora_rank=m.c, q_lora_rank=m.q_r, qk_nope_head_dim=m.d_n, qk_rope_head_dim=m.d_r,
        v_head_dim=m.d_v,
    )  # fmt: skip
    config = ModelConfig(
        name="tiny", model_type="deepseek_v3", vocab_size=shape.V * tp, hidden_size=shape.h,
        intermediate_size=shape.f * tp, num_hidden_layers=shape.layers,
        num_attention_heads=shape.a * tp, num_key_value_heads=shape.a * tp,
        head_dim=m.d_n + m.d_r, rotary_dim=m.d_r, max_position_embeddings=shape.s, mla=mla,
    )  # fmt: skip
    setup = TrainingSetup(
        stack="megatron", seq_len=shape.s, micro_batch_size=shape.b, loss="fused",
        recompute="selective" if m.recompute else shape.recompute,
        recompute_modules=m.recompute, attention="cudnn",
    )  # fmt: skip
    return plan_rows(
        plan_of(config, setup, {"watched": True}, ParallelPlan(tp=tp, sp=shape.how.sp))
    )


@pytest.mark.parametrize("how", [Parallel(), Parallel(2, True)], ids=str)
@pytest.mark.parametrize(
    "modules", [(), ("layernorm",), ("mla_up_proj",), ("mlp",), ("mla_up_proj", "mlp", "layernorm")]
)
def test_every_event_of_a_micro_batch_with_latents(modules, how):
    shape = Shape(s=48, b=2, h=96, a=8, k=8, d=24, f=160, V=256, layers=4, how=how)
    latent = Latent(recompute=modules)
    theirs, forward = rows(shape, LatentModel(shape, latent))
    ours, mine = engine_rows(shape, latent)
    for index, (one, other) in enumerate(zip(ours[:-1], theirs[:-1], strict=False)):
        assert one == other, (index, forward, mine)
    assert len(ours) == len(theirs)
    assert mine == forward
