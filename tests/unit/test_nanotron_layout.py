"""How nanotron cuts a model into stages, what it runs, and how long a stage keeps what it passes on."""

from __future__ import annotations

from typing import Any

import pytest

from memcalc import TrainingSetup, estimate
from memcalc.engine.parallel.megatron.nanotron_layout import padded_vocabulary, stage_layers
from memcalc.engine.parallel.pipeline.actions import Pipe
from memcalc.engine.parallel.pipeline.pipeline_nanotron import nanotron_step
from memcalc.engine.parallel.pipeline.pipeline_program import Drop, Item
from memcalc.errors import ConfigError
from memcalc.inputs.parallel import ParallelPlan
from tests.unit.megatron_support import gpt, llama
from tests.unit.test_nanotron_saved import nanotron, small


def playbook(layers: int, hidden: int, ffn: int) -> Any:
    return llama(
        hidden_size=hidden, intermediate_size=ffn, num_hidden_layers=layers, vocab_size=131072,
        num_attention_heads=32, num_key_value_heads=32, head_dim=hidden // 32,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("dims", "stages"),
    [
        ((16, 2048, 8192), (11, 5)),
        ((16, 2048, 8192), (3, 3, 2, 3, 2, 3, 0, 0)),
        ((28, 3072, 8192), (16, 12)),
        ((28, 3072, 8192), (4, 4, 4, 4, 4, 4, 4, 0)),
        ((32, 4096, 14336), (18, 14)),
        ((32, 4096, 14336), (5, 4, 4, 5, 4, 4, 4, 2)),
    ],
)
def test_stages_have_equal_costs_of_layers_and_head(dims, stages):
    assert stage_layers(playbook(*dims), len(stages)) == stages


def test_a_stage_may_have_no_layer():
    """The last has the head; the one before it nothing at all."""
    config = small(num_hidden_layers=3, vocab_size=65536)
    layout = ParallelPlan(pp=4, stage_layers=(2, 1, 0, 0))
    setup = TrainingSetup(stack="nanotron", seq_len=256, micro_batch_size=1, grad_accum_steps=8)
    stages = estimate(config, setup, parallel=layout).stages
    assert [stage.stage.in_flight for stage in stages] == [(4,), (3,), (2,), (1,)]
    assert stages[2].states["parameters"] == 0
    with pytest.raises(ConfigError, match="only the first and the last may have no block"):
        estimate(config, TrainingSetup(stack="torch"), parallel=layout)


def test_stages_are_cut_by_cost_unless_stated():
    setup = TrainingSetup(stack="nanotron", seq_len=256, micro_batch_size=1, grad_accum_steps=4)
    config = small(num_hidden_layers=8, vocab_size=131072)
    found = estimate(config, setup, parallel=ParallelPlan(pp=2)).stages
    first = stage_layers(config, 2)[0]
    assert found[0].stage.layers == ((0, first - 1),) and first > 4


def test_the_vocabulary_is_padded_to_the_ranks_alone():
    assert padded_vocabulary(50257, 1) == 50257 and padded_vocabulary(50257, 8) == 50264


@pytest.mark.parametrize(
    ("config", "setup", "layout", "said"),
    [
        (gpt(), {}, {}, "models of the Llama form"),
        (small(attention_bias=True), {}, {}, "with biases"),
        (small(), {"precision": "bf16"}, {}, "valid: bf16-mixed"),
        (small(), {"attention": "eager"}, {}, "valid: flash"),
        (small(), {"recompute": "selective"}, {}, "valid: none, full"),
        (small(), {"loss": "chunked"}, {}, "valid: fp32"),
        (small(num_key_value_heads=2), {}, {"tp": 4}, "divides the 2 key/value heads"),
        (small(), {}, {"cp": 2}, "valid: 1"),
    ],
)
def test_what_nanotron_has_not_is_refused(config, setup, layout, said):
    with pytest.raises(ConfigError, match=said):
        nanotron(config, ParallelPlan(**layout), **setup)


def test_a_stream_is_sent_when_its_backward_begins_in_the_steady_state():
    steps = nanotron_step("1f1b", Pipe(2, 1, 4), 0).instructions
    order = [step.item if isinstance(step, Drop) else step for step in steps]
    backward = next(i for i, step in enumerate(order) if step[0] == "B")
    assert Item("stream", 0, 1) in order[:backward]
    assert Item("stream", 0, 0) not in order[:-1]  # the warm-up's last stays in the loop's variable


@pytest.mark.parametrize(("schedule", "most"), [("1f1b", 3), ("gpipe", 8)])
def test_micro_batches_in_flight(schedule, most):
    setup = TrainingSetup(stack="nanotron", seq_len=256, micro_batch_size=1, grad_accum_steps=8)
    layout = ParallelPlan(pp=3, schedule=schedule, stage_layers=(2, 1, 1))
    first = estimate(small(), setup, parallel=layout).stages[0]
    assert first.stage.in_flight == (most,)
