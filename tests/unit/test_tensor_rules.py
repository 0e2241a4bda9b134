"""What tensor parallelism of stack torch refuses, one line each, and the degrees it names do run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcalc.engine.make_plan import plan_of
from memcalc.engine.memory import step_memory
from memcalc.errors import ConfigError
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.models import load_model
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.training import TrainingSetup
from tests.harness.models import LLAMA


@pytest.mark.parametrize(
    ("model", "stated", "line"),
    [
        ("llama-3.1-8b", {"tp": 6}, "tp=6 does not divide 32 heads; valid: 1, 2, 4, 8, 16, 32"),
        ("llama-3.1-8b", {"tp": 16},
         "tp: got 16; rule: divides num_key_value_heads = 8; valid: 1, 2, 4, 8"),
        ("llama-3.1-8b", {"gpus": 16, "tp": 4}, "tp: got 4 with dp 4 and no fsdp; "
         "rule: DDP takes no split parameters; valid: --fsdp"),
        ("llama-3.1-8b", {"gpus": 4, "tp": 2, "zero": 1}, "tp: got 2 with dp 2 and no fsdp; "
         "rule: DDP takes no split parameters; valid: --fsdp, or --tp 4"),
        ("llama-3.1-8b", {"tp": 2, "cp": 2}, "tp: got 2 with dp 1 x cp 2 and no fsdp; "
         "rule: DDP takes no split parameters; valid: --fsdp"),
        ("llama-3.1-8b", {"tp": 2, "dp": 8, "fsdp": True, "reshard": 2},
         "reshard: got 2 with tp 2; rule: PyTorch keeps no parameters that tp splits on fewer "
         "ranks; valid: true, false"),
        ("gpt2", {"tp": 4},
         "tp: got 4; rule: divides vocab_size = 50,257; valid: 1; or --set model.vocab_size=50260"),
        ("mixtral-8x7b", {"tp": 2}, "tp: got 2 for mixtral-8x7b; "
         "rule: experts are not split over ranks; valid: 1, or --stack megatron"),
        ("deepseek-v2-lite", {"tp": 2}, "tp: got 2 for deepseek-v2-lite; "
         "rule: experts are not split over ranks; valid: 1, or --stack megatron"),
        ("olmo-2-7b", {"tp": 2},
         "tp: got 2 for olmo-2-7b; rule: q and k are normed over all heads; valid: 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_split_is_refused_in_a_line(
    model: str, stated: dict[str, Any], line: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        plan_of(load_model(model), TrainingSetup(), None, ParallelPlan(**stated))
    assert str(refused.value) == line


@pytest.mark.parametrize(
    ("setup", "said"),
    [
        ({"seq_len": 2049}, "seq: got 2049 with sp; rule: a multiple of 2; nearest valid: 2048"),
        ({"loss": "fused"}, "loss: got fused with tp 2"),
        ({"optimizer": "adafactor"}, "optimizer: got adafactor with tp"),
        ({"optimizer": "sgd", "optimizer_impl": "fused"}, "optimizer-impl: got fused for sgd"),
        ({"precision": "fp8-mixed"}, "precision: got fp8-mixed with tp"),
        ({"recompute": "full", "reentrant": True}, "reentrant: got true with tp"),
    ],
)
def test_setups_that_parts_cannot_run_are_refused(setup: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=r"^[^\n]+$") as refused:
        plan_of(LLAMA, TrainingSetup(**setup), None, ParallelPlan(tp=2, sp=True))
    assert str(refused.value).startswith(said)


@given(
    groups=st.integers(1, 12), queries=st.integers(1, 3), columns=st.integers(1, 60),
    rows=st.integers(1, 60), tp=st.integers(2, 12),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_degrees_said_to_be_valid_are_and_no_other(
    groups: int, queries: int, columns: int, rows: int, tp: int
) -> None:
    config = replace(
        LLAMA, num_key_value_heads=groups, num_attention_heads=groups * queries,
        intermediate_size=columns, vocab_size=rows,
    )  # fmt: skip
    fits = all(n % tp == 0 for n in (groups, columns, rows))
    if fits:
        assert step_memory(_plan(config, tp)).peak_bytes > 0
        return
    with pytest.raises(ConfigError) as refused:
        _plan(config, tp)
    listed = str(refused.value).partition("valid: ")[2].partition(";")[0]
    assert tp not in [int(word) for word in listed.split(", ")]
    if "rule: divides" in str(refused.value):
        for word in listed.split(", "):
            _plan(config, int(word))


def _plan(config: ModelConfig, tp: int) -> Any:
    setup = TrainingSetup(seq_len=24, precision="bf16")
    return plan_of(config, setup, None, ParallelPlan(tp=tp))
