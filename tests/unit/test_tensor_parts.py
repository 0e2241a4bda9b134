"""What tp ranks share adds up to what one GPU has, what they do not share is on each of them.

The engine alone, against itself without tensor parallelism; oracle/test_tensor_parallel.py has PyTorch.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from memcalc.engine.estimate import estimate
from memcalc.engine.events import step_events
from memcalc.engine.make_plan import plan_of
from memcalc.engine.memory import step_memory
from memcalc.engine.plan import Plan
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.training import TrainingSetup
from tests.harness.models import GPT2, LLAMA

MODELS = {
    "llama": replace(LLAMA, num_attention_heads=8, num_key_value_heads=8, vocab_size=504),
    "gpt2": replace(GPT2, num_attention_heads=8, num_key_value_heads=8, head_dim=8, vocab_size=504),
    "qwen": replace(
        LLAMA, num_attention_heads=16, num_key_value_heads=8, head_dim=4, vocab_size=504,
        qk_norm="head", attention_bias=True,
    ),
}  # fmt: skip
#: Operators of a block that work on a rank's heads or columns, and on a rank's part of the stream.
SHARED = {"q_proj", "k_proj", "v_proj", "qkv_proj", "gate_proj", "up_proj", "activation",
          "gate_mul", "rope", "q_norm", "k_norm"}  # fmt: skip
STREAM = {"attn_norm", "mlp_norm", "attn_residual", "mlp_residual"}
#: Primitives that only ranks have.
MOVES = {"all_reduce", "all_gather_into_tensor", "reduce_scatter_tensor"}


def _plan(config: ModelConfig, **stated: Any) -> Plan:
    setup = TrainingSetup(seq_len=48, micro_batch_size=2, precision="bf16")
    return plan_of(config, setup, None, ParallelPlan(**stated) if stated else None)


def _forward(plan: Plan) -> Counter[tuple[str, str]]:
    """Bytes allocated in the first block's forward, by operator and primitive."""
    made: Counter[tuple[str, str]] = Counter()
    for event in step_events(plan):
        if event.phase == "forward" and event.layer == 0 and event.allocated_bytes > 0:
            made[event.op, event.primitive] += event.allocated_bytes
    return made


@pytest.mark.parametrize("sp", [False, True])
@pytest.mark.parametrize("tp", [2, 4, 8])
@pytest.mark.parametrize("name", MODELS)
def test_a_blocks_tensors_add_up(name: str, tp: int, sp: bool) -> None:
    one, part = _forward(_plan(MODELS[name])), _forward(_plan(MODELS[name], tp=tp, sp=sp))
    seen = set()
    for (op, primitive), nbytes in one.items():
        if op in SHARED or (op in STREAM and sp):
            assert part[op, primitive] * tp == nbytes, (op, primitive)
            seen.add(op)
        elif op in STREAM:
            assert part[op, primitive] == nbytes, (op, primitive)
    assert {"q_proj", "qkv_proj"} & seen and {"up_proj", "activation"} <= seen
    assert not MOVES & {primitive for _, primitive in one}
    assert ("attn_norm", "all_reduce") not in part
    moves = {primitive for _, primitive in part} & MOVES
    assert moves == (MOVES - {"all_reduce"} if sp else {"all_reduce"})


@pytest.mark.parametrize("tp", [2, 4, 8])
@pytest.mark.parametrize("name", MODELS)
def test_parameters_and_states_add_up(name: str, tp: int) -> None:
    """Norms, positions and row-wise biases are whole on every rank, all else is shared."""
    config = MODELS[name]
    one, part = (step_memory(_plan(config, **kw)).states for kw in ({}, {"tp": tp}))
    h, layers = config.hidden_size, config.num_hidden_layers
    norm = h * (2 if config.norm_type == "layernorm" else 1)
    whole = (2 * layers + 1) * norm + config.num_position_rows * h
    whole += layers * 2 * h * config.attention_output_bias
    whole += layers * 2 * config.head_dim * (config.qk_norm == "head")
    assert part.parameter_bytes * tp == one.parameter_bytes + 2 * whole * (tp - 1)
    assert part.optimizer_bytes * tp == one.optimizer_bytes + 4 * whole * (tp - 1)


def test_the_embeddings_gradient_has_the_rows_of_all_ranks() -> None:
    config = MODELS["llama"]
    held = step_memory(_plan(config, tp=4)).states
    table = 2 * config.vocab_size * config.hidden_size
    assert held.gradient_bytes - held.parameter_bytes == table - table // 4


@pytest.mark.parametrize(
    ("config", "stated", "said"),
    [
        (MODELS["llama"], {"tp": 4}, True),
        (MODELS["llama"], {"tp": 4, "fsdp": True}, False),
        (replace(MODELS["llama"], tie_word_embeddings=True), {"tp": 4}, False),
    ],
)
def test_a_note_says_so_where_a_rank_has_more_gradients_than_parameters(
    config: ModelConfig, stated: dict[str, Any], said: bool
) -> None:
    plan = _plan(config, **stated)
    held = step_memory(plan).states
    assert (held.gradient_bytes > held.parameter_bytes) == said
    assert any("embedding's gradient" in note for note in plan.notes) == said


def test_sharded_parts_add_up_to_the_parts() -> None:
    config = MODELS["llama"]
    part = step_memory(_plan(config, tp=4)).states
    sharded = step_memory(_plan(config, tp=4, dp=2, fsdp=True)).states
    assert sharded.parameter_bytes * 2 == part.parameter_bytes
    assert sharded.optimizer_bytes * 2 == part.optimizer_bytes


@pytest.mark.parametrize("name", MODELS)
def test_one_rank_is_one_gpu(name: str) -> None:
    setup = TrainingSetup(seq_len=48)
    alone = estimate(MODELS[name], setup, gpu="h100-80gb")
    ranked = estimate(MODELS[name], setup, parallel=ParallelPlan(tp=1, sp=False), gpu="h100-80gb")
    assert ranked.memory == alone.memory
    for layout in ({"dp": 4}, {"dp": 4, "fsdp": True}, {"pp": 2, "schedule": "gpipe"}):
        if "pp" in layout and MODELS[name].tie_word_embeddings:
            continue
        plans = [ParallelPlan(**layout, **more) for more in ({}, {"tp": 1, "sp": False})]
        first, second = (estimate(MODELS[name], setup, parallel=plan).memory for plan in plans)
        assert first == second


@pytest.mark.parametrize("stated", [{"tp": 8, "sp": True}, {"tp": 4, "dp": 4, "fsdp": True}])
def test_a_known_structure_is_priced_at_once(stated: dict[str, Any]) -> None:
    """40 ms for a warm estimate of 32 blocks without the allocator; one core took 2 and 4 ms."""
    config = replace(MODELS["llama"], num_hidden_layers=32)
    setup, layout = TrainingSetup(seq_len=48), ParallelPlan(**stated)

    def took() -> float:
        start = time.process_time()
        estimate(config, setup, parallel=layout, allocator=False)
        return time.process_time() - start

    took()
    assert min(took() for _ in range(9)) < 0.04
