"""The plain decoder's mixture MLP and latent attention, event for event against PyTorch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor as TorchTensor

from memcalc.engine.autograd import backward
from memcalc.engine.blocks.mla import mla
from memcalc.engine.blocks.moe import moe
from memcalc.engine.build import Build
from memcalc.engine.dims import dim_sizes, dim_values
from memcalc.engine.kernels import Kernels
from memcalc.engine.tensors import Tape, Tensor
from memcalc.inputs.model import MlaConfig, ModelConfig, MoeConfig
from tests.oracle.support.sparse import Weights, latent_attention, meta_weights, mixture
from tests.oracle.support.tracker import Alloc, StorageTracker

B, S, H = 2, 64, 128
MODEL = ModelConfig(
    name="plain", model_type="plain", vocab_size=100, hidden_size=H, intermediate_size=320,
    num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=4, head_dim=48,
    max_position_embeddings=256, rotary_dim=16,
    mla=MlaConfig(kv_lora_rank=64, qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=32,
                  q_lora_rank=96),
)  # fmt: skip
Steps = list[tuple[int, list[int]]]


def _steps(amounts: list[int]) -> Steps:
    steps: Steps = []
    for amount in amounts:
        if amount > 0:
            steps.append((amount, []))
        elif steps:
            steps[-1][1].append(-amount)
    return [(allocated, sorted(freed)) for allocated, freed in steps]


def _engine(
    model: ModelConfig, block: Callable[[Build, Tensor], Tensor], imbalance: float = 1.0
) -> tuple[Steps, Tape, dict[str, int]]:
    values = dim_values(model, B, S, imbalance)
    tape = Tape()
    build = Build(tape, model, Kernels(), dim_sizes(values))
    tape.block = 0
    x = tape.external((build["b"], build["s"], build["h"]), "bf16")
    x.requires_grad = True
    out = block(build, x)
    seed = tape.empty("empty_like", out.shape, out.dtype)
    backward(out, seed)
    sizes = [size.value(values) for size in tape.sizes]
    return _steps([sizes[e] if e >= 0 else -sizes[~e] for e in tape.events]), tape, values


def _pytorch(weights: Weights, block: Callable[[TorchTensor], TorchTensor]) -> Steps:
    x = torch.zeros(B, S, H, dtype=torch.bfloat16, device="meta", requires_grad=True)
    tracker = StorageTracker("meta")
    tracker.track(x, list(weights.values()))
    known = {alloc.storage for alloc in tracker.live_storages()}
    with tracker:
        out = block(x)
        seed = torch.empty_like(out)
        out.backward(seed)
    return _steps(
        [
            event.nbytes if isinstance(event, Alloc) else -event.nbytes
            for event in tracker.events
            if event.storage not in known
        ]
    )


def _mixture_model(normalize: bool, shared: int) -> ModelConfig:
    moe_config = MoeConfig(
        num_experts=8, num_experts_per_tok=2, moe_intermediate_size=96, sparse_layers=(0,),
        normalize_top_k=normalize, shared_intermediate_size=shared,
    )  # fmt: skip
    return dataclasses.replace(MODEL, mla=None, rotary_dim=None, moe=moe_config)


@pytest.mark.parametrize(("normalize", "shared"), [(True, 0), (False, 160)])
def test_mixture(normalize: bool, shared: int) -> None:
    shapes: dict[str, tuple[int, ...]] = {
        "router": (8, H), "gate_up": (8, 192, H), "down": (8, H, 96),
    }  # fmt: skip
    if shared:
        shapes |= {"shared_gate": (shared, H), "shared_up": (shared, H), "shared_down": (H, shared)}
    weights = meta_weights(shapes)
    theirs = _pytorch(weights, lambda x: mixture(x, weights, 2, normalize))
    mine, _, _ = _engine(_mixture_model(normalize, shared), lambda build, x: moe(build, x)[0])
    assert mine == theirs


def test_imbalance_scales_the_routed_rows() -> None:
    """Grouped products do 2 R i o FLOPs each way: three quarters more rows, as much more work."""
    model = _mixture_model(True, 0)
    executed = []
    for imbalance in (1.0, 1.75):
        _, tape, values = _engine(model, lambda build, x: moe(build, x)[0], imbalance)
        flops = tape.records[0, "expert_gate_up"].flops
        assert flops["forward"] is flops["dgrad"] is flops["wgrad"]
        executed.append(flops["forward"].value(values))
    assert executed[0] == 2 * (B * S * 2) * H * 192
    assert executed[1] == executed[0] * 7 // 4


def test_latent_attention() -> None:
    dims = {"d_n": 32, "d_r": 16, "d_v": 32, "a": 4, "c": 64}
    weights = meta_weights({
        "q_a": (96, H), "q_norm": (96,), "q_b": (4 * 48, 96), "kv_a": (80, H), "kv_norm": (64,),
        "kv_b": (4 * 64, 64), "o": (H, 4 * 32),
    })  # fmt: skip
    tables = [torch.zeros(S, 16, dtype=torch.bfloat16, device="meta") for _ in range(2)]
    weights |= {"cos": tables[0], "sin": tables[1]}
    theirs = _pytorch(weights, lambda x: latent_attention(x, weights, dims, tables))

    def block(build: Build, x: Tensor) -> Tensor:
        table = build.tape.external((build["s"], build["r"]), "bf16")
        return mla(build, x, (table, table))[0]

    assert _engine(MODEL, block)[0] == theirs
