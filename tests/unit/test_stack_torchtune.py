"""Stack torchtune: its losses, packed rows, activations on the host, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from memcalc.engine.make_plan import plan_of
from memcalc.engine.memory import step_memory
from memcalc.engine.plan import Plan
from memcalc.errors import ConfigError
from memcalc.inputs.models import load_model
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.training import TrainingSetup

MODEL = load_model("llama-3.2-1b")
T = 2048
ON_HOST = ParallelPlan(offload="activations")


def _plan(
    kernels: dict[str, Any] | None = None, parallel: ParallelPlan | None = None, **stated: Any
) -> Plan:
    setup = TrainingSetup(seq_len=T, precision="bf16", stack="torchtune", **stated)
    return plan_of(MODEL, setup, kernels, parallel)


def test_packed_samples_keep_rotary_rows_of_their_own() -> None:
    """fp32 (cos, sin) of half a head, for q and for k, a layer."""
    packed, padded = (
        step_memory(_plan({"packed": packed})).saved_per_layer_bytes for packed in (True, False)
    )
    assert packed - padded == 2 * T * MODEL.head_dim * 4


def test_keys_and_values_are_kept_for_every_query_head() -> None:
    wide = step_memory(_plan({"packed": False})).saved_per_layer_bytes
    plain = step_memory(
        plan_of(MODEL, TrainingSetup(seq_len=T, precision="bf16"), {"norm": "hand"})
    ).saved_per_layer_bytes
    copies = MODEL.num_attention_heads - MODEL.num_key_value_heads
    assert wide - plain == 2 * 2 * T * copies * MODEL.head_dim


@pytest.mark.parametrize("compiled", [False, True])
def test_16_bit_logits_of_every_chunk_live_through_the_loss(compiled: bool) -> None:
    """Compiled, nothing else of the logits is stored but one chunk's gradient."""
    memory = step_memory(_plan(loss="chunked", compile=compiled, recompute="full"))
    logits = 2 * T * MODEL.vocab_size
    breakdown = memory.phases["loss"] - memory.phases["forward"]
    assert breakdown < logits / 8 if compiled else breakdown > logits


def test_activations_on_the_host_leave_three_inputs_on_the_gpu() -> None:
    """The hook's last five tensors: a block's input and an empty one each."""
    here = step_memory(_plan(recompute="full"))
    away = step_memory(_plan(recompute="full", parallel=ON_HOST))
    block = 2 * T * MODEL.hidden_size
    saved = here.saved_bytes - away.saved_bytes
    assert (MODEL.num_hidden_layers - 4) * block < saved <= (MODEL.num_hidden_layers + 8) * block
    assert away.phases["backward"] < here.phases["backward"]
    deep = _plan(recompute="full", parallel=ON_HOST, num_layers=4)
    assert step_memory(deep).saved_bytes == away.saved_bytes


def test_activations_on_the_host_go_with_a_step_inside_backward() -> None:
    both = _plan(recompute="full", parallel=ON_HOST, optimizer_in_backward=True)
    alone = _plan(recompute="full", optimizer_in_backward=True)
    assert step_memory(both).states.gradient_bytes == 0
    assert step_memory(both).saved_bytes < step_memory(alone).saved_bytes
    assert any("host memory is not counted" in note for note in both.notes)


@pytest.mark.parametrize(
    ("stated", "parallel", "said"),
    [
        ({"recompute": "none"}, ON_HOST, "recompute full"),
        ({}, ParallelPlan(tp=2), "tp: not in this version"),
        ({"attention": "eager"}, None, "an eager attention"),
    ],
)
def test_what_was_not_built_is_refused(
    stated: dict[str, Any], parallel: ParallelPlan | None, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        _plan(parallel=parallel, **stated)


def test_the_rotary_table_of_all_positions_stands_for_the_whole_run() -> None:
    found = step_memory(_plan()).input_bytes
    assert found == 8 * T + 4 * MODEL.max_position_embeddings * MODEL.head_dim


@pytest.mark.parametrize("model", ["gpt2", "gemma-2-2b", "deepseek-v2-lite"])
def test_other_layers_are_refused(model: str) -> None:
    with pytest.raises(ConfigError, match="rule: a Llama layer"):
        plan_of(load_model(model), TrainingSetup(stack="torchtune"))
