"""Imbalance between ranks: the busiest rank's experts get more rows than their share."""

from __future__ import annotations

from memcalc.engine.autograd import backward
from memcalc.engine.blocks.moe import moe
from memcalc.engine.build import Build
from memcalc.engine.dims import dim_sizes, dim_values
from memcalc.engine.kernels import Kernels
from memcalc.engine.tensors import Tape
from memcalc.inputs.model import ModelConfig, MoeConfig

B, S, H = 2, 64, 128
MODEL = ModelConfig(
    name="plain", model_type="plain", vocab_size=100, hidden_size=H, intermediate_size=320,
    num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=4, head_dim=32,
    max_position_embeddings=256,
    moe=MoeConfig(num_experts=8, num_experts_per_tok=2, moe_intermediate_size=96,
                  sparse_layers=(0,), normalize_top_k=True),
)  # fmt: skip


def _traced(imbalance: float) -> tuple[Tape, dict[str, int]]:
    """Forward and backward of the mixture MLP alone."""
    values = dim_values(MODEL, B, S, imbalance)
    tape = Tape()
    build = Build(tape, MODEL, Kernels(), dim_sizes(values))
    tape.block = 0
    x = tape.external((build["b"], build["s"], build["h"]), "bf16")
    x.requires_grad = True
    out = moe(build, x)[0]
    backward(out, tape.empty("empty_like", out.shape, out.dtype))
    return tape, values


def test_imbalance_scales_the_routed_rows() -> None:
    """Grouped products do 2 R i o FLOPs each way: three quarters more rows, as much more work."""
    executed = []
    for imbalance in (1.0, 1.75):
        tape, values = _traced(imbalance)
        products = [
            k.ran for k in tape.kernels if k.op == "expert_gate_up" and k.ran.kind == "grouped"
        ]
        assert len(products) == 3
        flops = {product.part: product.flops for product in products}
        assert flops["forward"] is flops["dgrad"] is flops["wgrad"]
        executed.append(flops["forward"].value(values))
    assert executed[0] == 2 * (B * S * 2) * H * 192
    assert executed[1] == executed[0] * 7 // 4
