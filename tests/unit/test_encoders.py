"""Encoders in a setup: blocks, lengths, inputs, what is counted, what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from memcalc.engine.explain import explain
from memcalc.engine.flops import step_flops
from memcalc.engine.grid.grid import requested_bytes, shape_of, together
from memcalc.engine.make_plan import plan_of
from memcalc.engine.memory import input_bytes, step_memory
from memcalc.engine.plan import Plan
from memcalc.engine.timing.op_time import compute_time
from memcalc.errors import ConfigError, NotInThisVersionError
from memcalc.inputs.hardware import load_gpu
from memcalc.inputs.models import load_model
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.peft import PeftSetup
from memcalc.inputs.rates import rates_of
from memcalc.inputs.training import TrainingSetup

T5, BERT = load_model("t5-small"), load_model("bert-base-uncased")


def _plan(name: str = "t5-small", **stated: Any) -> Plan:
    return plan_of(load_model(name), TrainingSetup(**{"seq_len": 64, "stack": "hf", **stated}))


def test_the_target_is_as_long_as_the_source_unless_stated() -> None:
    assert _plan().values["u"] == 64
    plan = _plan(target_seq_len=16)
    assert plan.values["u"] == 16 and plan.resolved.tokens == 64
    assert any("16 target tokens" in note for note in plan.resolved.notes)


def test_only_encoder_decoders_have_a_target() -> None:
    for name, stack in (("bert-base-uncased", "hf"), ("gpt2", "torch")):
        with pytest.raises(ConfigError, match="target-seq: got 8; rule: of an encoder-decoder"):
            _plan(name, target_seq_len=8, stack=stack)


def test_ids_and_labels() -> None:
    """int64: T5 has a source and a target, BERT labels that are not its ids."""
    assert input_bytes(_plan(target_seq_len=16, micro_batch_size=3)) == 8 * 3 * (64 + 16)
    assert input_bytes(_plan("bert-base-uncased", micro_batch_size=3)) == 8 * 3 * 64 * 2


def test_a_truncated_model_has_as_many_blocks_in_each_half() -> None:
    plan = _plan(num_layers=2)
    assert [kind.stack for kind in plan.kinds] == ["encoder"] * 2 + ["cross"] * 2
    assert [kind.first for kind in plan.kinds] == [True, False, True, False]


def test_explain_shows_each_kind_of_block() -> None:
    found = explain(T5, TrainingSetup(seq_len=64, stack="hf"))
    layers = dict.fromkeys((row.kind, row.layers) for row in found.rows)
    expected = [("encoder, first", 1), ("encoder", 5), ("decoder, first", 1), ("decoder", 5)]
    assert [one for one in layers if one[0] != "once"] == expected
    parameters = sum(row.params.total for row in found.rows)
    assert parameters == 60_506_624


def test_saved_bytes_do_not_depend_on_which_blocks_are_traced() -> None:
    """Each block beyond the third of a half adds what any other of it adds."""
    saved = [step_memory(_plan(num_layers=n)).saved_bytes for n in (4, 5, 6)]
    assert saved[1] - saved[0] == saved[2] - saved[1] > 0


def test_model_flops_of_both_halves_are_over_source_tokens() -> None:
    """3 x 2 x matrix parameters, once a source or target token, and cores over their squares."""
    s, u, layers, h, f, width, v = 64, 16, 6, 512, 2048, 512, 32128
    own, mlp = 4 * h * width, 2 * h * f
    source = layers * (own + mlp) + layers * 2 * h * width  # cross attention's keys and values
    target = layers * (own + mlp + 2 * h * width) + v * h
    cores = layers * 4 * width * (s * s + u * u + u * s)
    flops = step_flops(_plan(target_seq_len=u))
    assert flops.model_per_token == 3 * (2 * (source * s + target * u) + cores) / s
    halved = 3 * layers * 4 * width * u * u / 2 / s
    assert flops.model_causal_per_token == flops.model_per_token - halved


def test_no_score_of_bert_is_masked() -> None:
    flops = step_flops(_plan("bert-base-uncased"))
    assert flops.model_causal_per_token == flops.model_per_token


def test_attention_is_priced_over_all_scores() -> None:
    """As causal it would be about half as many: BERT has no mask, T5's is part of a bias."""
    rates = rates_of(load_gpu("a100-80gb")[0])
    for name in ("t5-small", "bert-base-uncased"):
        ops = compute_time(_plan(name, seq_len=512), rates).ops
        cores = [op for op in ops if op.op in ("attention", "cross_attention")]
        assert cores and all(op.kernel_flops == op.flops for op in cores)


def test_sizes_of_a_grid_are_those_of_single_plans() -> None:
    plans = [_plan(micro_batch_size=b, seq_len=s) for b in (2, 3, 8) for s in (32, 48, 96)]
    assert len({shape_of(plan) for plan in plans}) == 1
    found = requested_bytes(together(plans), len(plans))
    assert list(found) == [step_memory(plan).peak_bytes for plan in plans]


@pytest.mark.parametrize(
    ("stated", "layout", "says"),
    [
        ({"stack": "torch"}, {}, "nearest valid: --stack hf"),
        ({"stack": "torchtune"}, {}, "nearest valid: --stack hf"),
        ({"stack": "megatron"}, {}, "nearest valid: --stack hf"),
        ({}, {"tp": 2}, "got a layer or its sequence divided"),
        ({}, {"pp": 2}, "divided, or stages"),
        ({}, {"offload": "activations"}, "got offload activations"),
        ({"precision": "fp8-mixed"}, {}, "fp8-mixed"),
        ({"recompute": "sac"}, {}, "--recompute sac"),
        ({"recompute": "selective"}, {}, "--recompute selective"),
        ({"recompute": "full", "recompute_layers": 2}, {}, "full:2"),
        ({"recompute": "full", "reentrant": True}, {}, "reentrant"),
        ({"optimizer_in_backward": True}, {}, "--optimizer-in-backward"),
        ({"peft": PeftSetup(method="freeze", layers=1)}, {}, "other than LoRA"),
    ],
)
@pytest.mark.parametrize("model", [T5, BERT], ids=["t5", "bert"])
def test_what_does_not_go_with_encoders_is_refused(
    model: Any, stated: dict[str, Any], layout: dict[str, Any], says: str
) -> None:
    setup = TrainingSetup(**{"seq_len": 64, "stack": "hf", **stated})
    with pytest.raises(NotInThisVersionError, match=says) as error:
        plan_of(model, setup, None, ParallelPlan(**layout))
    assert "\n" not in str(error.value)


def test_kernels_t5_cannot_run_are_replaced_and_said() -> None:
    for wanted in ("flash", "cudnn"):
        plan = _plan(attention=wanted)
        assert plan.kernels.attention == "efficient"
        assert any("position bias" in note for note in plan.notes)
    assert _plan(attention="eager").kernels.attention == "eager"
    assert _plan("bert-base-uncased").kernels.attention == "flash"
