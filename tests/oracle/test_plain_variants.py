"""The plain decoder's options against PyTorch code with the same options, event for event."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from memcalc.engine.build import Build
from memcalc.engine.dims import dim_sizes, dim_values
from memcalc.engine.kernels import BlockKind, Kernels, Traits
from memcalc.engine.tensors import Tape
from memcalc.engine.trace import micro_batch
from memcalc.harness.model.decoder import assemble, ledger_name
from memcalc.harness.watch.tracker import Alloc, StorageTracker
from memcalc.inputs.model import MlaConfig, ModelConfig, MoeConfig
from tests.oracle.support.engine import steps

BASE = ModelConfig(
    name="variant",
    model_type="llama",
    vocab_size=1000,
    hidden_size=128,
    intermediate_size=320,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    max_position_embeddings=256,
)


def _experts(**changes: Any) -> MoeConfig:
    plain: dict[str, Any] = {
        "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 96,
        "sparse_layers": (0, 1),
    }  # fmt: skip
    return MoeConfig(**plain | changes)


_LATENT: dict[str, Any] = {
    "num_key_value_heads": 4, "head_dim": 48, "rotary_dim": 16,
    "mla": MlaConfig(kv_lora_rank=64, qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=32,
                     q_lora_rank=96),
}  # fmt: skip
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "pre": ("flash", {}),
    "post": ("flash", {"norm_placement": "post"}),
    "sandwich": ("efficient", {"norm_placement": "sandwich"}),
    "post-residual": ("flash", {"norm_placement": "post-residual"}),
    "parallel": ("flash", {"parallel_block": True}),
    "parallel with two norms": ("efficient", {"parallel_block": True, "parallel_norms": 2}),
    "partial rotary, flash": ("flash", {"rotary_dim": 16}),
    "partial rotary, efficient": ("efficient", {"rotary_dim": 16}),
    "partial rotary, eager": ("eager", {"rotary_dim": 16}),
    "norm over all heads": ("flash", {"qk_norm": "full"}),
    "soft caps": ("eager", {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}),
    "sinks": ("eager", {"attention_sinks": True}),
    "alibi, efficient": ("efficient", {"position_embedding": "alibi"}),
    "alibi, eager": ("eager", {"position_embedding": "alibi", "num_key_value_heads": 4}),
    "no positions": ("flash", {"position_embedding": "none"}),
    "narrow embedding": (
        "flash",
        {"word_embed_proj_dim": 64, "embedding_norm": True, "final_norm": False},
    ),
    "head bias": ("flash", {"lm_head_bias": True}),
    "relative positions": ("eager", {"position_embedding": "relative", "num_key_value_heads": 4}),
    "gemma": (
        "eager",
        {
            "norm_unit_offset": True,
            "embedding_scale": True,
            "hidden_act": "gelu_pytorch_tanh",
            "sliding_window": 16,
            "layer_types": ("sliding", "full"),
            "tie_word_embeddings": True,
        },
    ),
    "mixtral": ("flash", {"moe": _experts(normalize_top_k=True)}),
    "a dense block first": ("flash", {"moe": _experts(sparse_layers=(1,))}),
    "gated shared expert": (
        "flash",
        {"moe": _experts(shared_intermediate_size=160, shared_expert_gate=True)},
    ),
    "gpt-oss": (
        "eager",
        {
            "moe": _experts(scoring="softmax-of-chosen", router_bias=True, expert_bias=True),
            "attention_sinks": True,
            "attention_bias": True,
            "attention_output_bias": True,
        },
    ),
    "latent attention, flash": ("flash", _LATENT),
    "latent attention, efficient": ("efficient", _LATENT),
    "latent attention, eager": ("eager", _LATENT),
    "full-rank queries": (
        "flash",
        {**_LATENT, "mla": replace(_LATENT["mla"], q_lora_rank=None)},
    ),
    "experts by softmax in groups": (
        "flash",
        {
            **_LATENT,
            "moe": _experts(
                fp32_router=True, expert_groups=4, groups_per_token=2, shared_intermediate_size=192
            ),
        },
    ),
    "experts by sigmoid in groups": (
        "flash",
        {
            **_LATENT,
            "moe": _experts(
                scoring="sigmoid",
                fp32_router=True,
                expert_groups=4,
                groups_per_token=2,
                normalize_top_k=True,
                shared_intermediate_size=96,
            ),
        },
    ),
    "relu, no gate": ("flash", {"gated_mlp": False, "hidden_act": "relu", "mlp_bias": True}),
    "one projection": ("flash", {"fused_qkv": True, "attention_bias": True, "rotary_dim": 16}),
}
_MADE_BEFORE = {"rope_tables", "relative_table", "causal_mask", "alibi"}


def _kinds(model: ModelConfig, kind: str) -> tuple[BlockKind, ...]:
    layers = range(model.num_hidden_layers)
    return tuple(BlockKind(model.layer_type(i), model.is_sparse(i), kind) for i in layers)


def _engine_events(model: ModelConfig, kernels: Kernels, recompute: str, batch: int) -> list[int]:
    values, tape = dim_values(model, batch, 64), Tape(watched=True)
    build = Build(tape, model, kernels, dim_sizes(values))
    micro_batch(build, list(_kinds(model, recompute)), False)
    out = []
    for event in list(tape.events):
        index = event if event >= 0 else ~event
        if tape.labels[tape.labels_of[index]].op not in _MADE_BEFORE:
            size = tape.sizes[index].value(values)
            out.append(size if event >= 0 else -size)
    return out


def _torch_events(model: ModelConfig, kernels: Kernels, recompute: str, batch: int) -> list[int]:
    decoder = assemble(model, kernels, _kinds(model, recompute), "meta")
    ids = torch.zeros(batch, 64, dtype=torch.long, device="meta")
    tracker = StorageTracker("meta")
    tracker.track(decoder, ids)
    left_out = {alloc.storage for alloc in tracker.live_storages()}
    with tracker:
        loss = decoder(ids, ids)
        loss.backward()
        del loss
    out = []
    for event in tracker.events:
        if isinstance(event, Alloc) and event.where in _MADE_BEFORE:
            left_out.add(event.storage)
        if event.storage not in left_out:
            out.append(event.nbytes if isinstance(event, Alloc) else -event.nbytes)
    return out


@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize("case", CASES)
def test_every_event(case: str, recompute: str) -> None:
    kernel, changes = CASES[case]
    _assert_equal(replace(BASE, **changes), Kernels(attention=kernel), recompute)


def _assert_equal(model: ModelConfig, kernels: Kernels, recompute: str) -> None:
    for batch in (1, 2):
        ours = steps(_engine_events(model, kernels, recompute, batch))
        theirs = steps(_torch_events(model, kernels, recompute, batch))
        for number, (one, other) in enumerate(zip(ours, theirs, strict=False)):
            assert one == other, f"allocation {number}: {one}, PyTorch {other}"
        assert len(ours) == len(theirs)


_MIXED: dict[str, Any] = {"param_dtype": "fp32", "autocast": True}
KERNELS = {
    "gate and up in one": Kernels(traits=Traits(fused_gate_up=True)),
    "gate and up in one, mixed": Kernels(traits=Traits(fused_gate_up=True), **_MIXED),
    "fused loss": Kernels(loss="fused"),
    "fused loss, mixed": Kernels(loss="fused", loss_chunks=3, **_MIXED),
    "fused loss, fp32": Kernels(
        loss="fused", loss_chunks=2, param_dtype="fp32", compute_dtype="fp32"
    ),
    "fp8": Kernels(fp8_linear=True, **_MIXED),
    "fp8, chunked loss": Kernels(fp8_linear=True, loss="chunked", loss_chunks=4, **_MIXED),
}


@pytest.mark.parametrize("recompute", ["none", "full", "sac"])
@pytest.mark.parametrize("experts", [False, True])
@pytest.mark.parametrize("kernels", KERNELS)
def test_every_event_of_other_kernels(kernels: str, experts: bool, recompute: str) -> None:
    moe = _experts(shared_intermediate_size=160, shared_expert_gate=True) if experts else None
    if experts and KERNELS[kernels].compute_dtype == "fp32":
        pytest.skip("PyTorch's grouped product takes 16 bit on tensors without data")
    _assert_equal(replace(BASE, moe=moe), KERNELS[kernels], recompute)


@pytest.mark.parametrize("case", CASES)
def test_parameters_have_the_ledgers_names_and_shapes(case: str) -> None:
    kernel, changes = CASES[case]
    model = replace(BASE, **changes)
    values, tape = dim_values(model, 1, 64), Tape(watched=True)
    build = Build(tape, model, Kernels(attention=kernel), dim_sizes(values))
    micro_batch(build, list(_kinds(model, "none")), False)
    ledger = {n: tuple(d.value(values) for d in t.shape) for n, t in tape.leaves.items()}
    decoder = assemble(model, Kernels(attention=kernel), _kinds(model, "none"), "meta")
    assert ledger == {ledger_name(n): tuple(p.shape) for n, p in decoder.named_parameters()}
