"""Context parallelism of stack torch: PyTorch's ring and Ulysses on the fake process group, and its rules."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.distributed.tensor.experimental._context_parallel._load_balancer import (
    _HeadTailLoadBalancer,
)

from memcalc.engine.kernels import Contexts
from memcalc.engine.make_plan import plan_of
from memcalc.engine.memory import step_memory
from memcalc.engine.plan import Plan
from memcalc.errors import ConfigError, NotInThisVersionError
from memcalc.harness.ranks.context import own_positions
from memcalc.harness.ranks.layout import Layout
from memcalc.harness.ranks.layout_rules import check_layout
from memcalc.inputs.model import MlaConfig, ModelConfig
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.training import TrainingSetup
from tests.harness.models import GPT2, LLAMA, cpu_plan
from tests.oracle.support.data_parallel import differences, engine_plan, first_difference
from tests.oracle.support.rank_draw import RankSetup

ONE = replace(LLAMA, num_hidden_layers=1)
WIDE = replace(ONE, num_attention_heads=8, num_key_value_heads=4, head_dim=8)
NORMED = replace(ONE, qk_norm="head")
LATENT = replace(
    ONE, num_key_value_heads=4, head_dim=24, rotary_dim=8,
    mla=MlaConfig(kv_lora_rank=24, q_lora_rank=None, qk_nope_head_dim=16, qk_rope_head_dim=8,
                  v_head_dim=16),
)  # fmt: skip


def _case(layout: Layout, config: ModelConfig, rank: int = 0, **setup: Any) -> RankSetup:
    stated = {"seq_len": 64 * layout.cp, "micro_batch_size": 2, "precision": "bf16", **setup}
    return RankSetup(config, TrainingSetup(**stated), layout, {}, rank)


def _ring(cp: int, **more: Any) -> Layout:
    return Layout(cp=cp, **{"fsdp": True, **more})


def _ulysses(cp: int, **more: Any) -> Layout:
    return Layout(cp=cp, cp_method="ulysses", **{"fsdp": True, **more})


MIXED: dict[str, Any] = {"precision": "bf16-mixed"}
CASES = {
    "ring-first-of-2": _case(_ring(2), LLAMA),
    "ring-last-of-2-full": _case(_ring(2), ONE, 1, recompute="full", **MIXED),
    "ring-of-4": _case(_ring(4), WIDE, 2, **MIXED),
    "ring-one-row": _case(_ring(4), WIDE, 1, micro_batch_size=1, precision="fp32"),
    "ring-cudnn-sac": _case(_ring(2), WIDE, 1, attention="cudnn", recompute="sac-attention"),
    "ring-efficient": _case(
        _ring(2), NORMED, recompute="selective", attention="efficient", **MIXED
    ),
    "ring-gpt2-ddp": _case(_ring(2, fsdp=False, dp=2), replace(GPT2, num_hidden_layers=1)),
    "ring-latent": _case(_ring(2, dp=2, reshard=False), LATENT, **MIXED),
    "ring-tp-sp": _case(_ring(2, tp=2, sp=True), WIDE, 3),
    "ulysses-of-2": _case(_ulysses(2), ONE),
    "ulysses-of-4-full": _case(_ulysses(4), WIDE, 3, recompute="full", **MIXED),
    "ulysses-one-row": _case(_ulysses(2), NORMED, micro_batch_size=1, grad_accum_steps=2, **MIXED),
    "ulysses-efficient-sac": _case(_ulysses(2), WIDE, attention="efficient", recompute="sac"),
    "ulysses-gpt2-ddp": _case(_ulysses(2, fsdp=False), replace(GPT2, num_hidden_layers=1)),
}


def _plan(case: RankSetup) -> Plan:
    """The engine's plan of this very rank; by itself it takes the one that needs most."""
    plan = engine_plan(case)
    assert plan.kernels.context is not None
    context = plan.kernels.context._replace(rank=case.layout.place(case.rank).cp)
    return plan._replace(kernels=plan.kernels._replace(context=context))


@pytest.mark.parametrize("name", CASES)
def test_a_rank_takes_what_pytorch_takes(name: str) -> None:
    plan, trace = _plan(CASES[name]), CASES[name].run()
    assert differences(plan, trace) == {}
    if (
        "latent" not in name
    ):  # where a gradient of a view is summed, the decoder's scope names no operator
        assert first_difference(plan, trace) == ""


@pytest.mark.parametrize("recompute", ["none", "full", "selective"])
@pytest.mark.parametrize("cp", [2, 4])
def test_the_estimate_is_of_the_rank_that_takes_most(cp: int, recompute: str) -> None:
    config = replace(LLAMA, vocab_size=100, num_key_value_heads=4, num_hidden_layers=4)
    setup = TrainingSetup(seq_len=512 * cp, micro_batch_size=1, recompute=recompute)
    plan = plan_of(config, setup, {}, ParallelPlan(cp=cp, fsdp=True))
    ranks = [
        plan._replace(kernels=plan.kernels._replace(context=Contexts("ring", cp, rank)))
        for rank in range(cp)
    ]
    peaks = [step_memory(one).peak_bytes for one in ranks]
    assert step_memory(plan).peak_bytes == max(peaks)
    assert recompute != "none" or min(peaks) < max(peaks)


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_a_rings_positions_are_those_of_pytorchs_load_balancer(ranks: int) -> None:
    seq = 16 * ranks
    indices = _HeadTailLoadBalancer(seq, ranks, torch.device("cpu"))._generate_indices()
    own = [own_positions(seq, ranks, rank, "ring") for rank in range(ranks)]
    assert torch.equal(torch.cat(own), indices.flatten())  # type: ignore[union-attr]


def test_ulysses_positions_are_in_order() -> None:
    own = [own_positions(24, 4, rank, "ulysses") for rank in range(4)]
    assert torch.cat(own).tolist() == list(range(24))


@pytest.mark.parametrize(
    ("config", "setup", "layout", "line"),
    [
        (LLAMA, {"seq_len": 100}, {"cp": 4, "cp_method": "ring"},
         "seq: got 100 with cp; rule: a multiple of 8; nearest valid: 96"),
        (LLAMA, {"seq_len": 96, "attention": "efficient"}, {"cp": 2},
         "seq: got 96 with cp 2 by ring; rule: a multiple of 128; nearest valid: 128"),
        (LLAMA, {"seq_len": 64}, {"cp": 4, "cp_method": "ulysses"},
         "cp: got 4 by ulysses; rule: divides a rank's 4 heads and 2 key/value heads; "
         "valid: 1, 2, or --cp-method ring"),
        (LLAMA, {"seq_len": 64, "attention": "eager"}, {"cp": 2},
         "cp: got 2 with attention eager; rule: kernels without scores and bias; "
         "valid: cp 1, or --attention flash, efficient, cudnn where the model allows it"),
    ],
)  # fmt: skip
def test_what_cannot_be_shared_is_refused_in_a_line(
    config: ModelConfig, setup: dict[str, Any], layout: dict[str, Any], line: str
) -> None:
    with pytest.raises(ConfigError) as error:
        plan_of(config, TrainingSetup(**setup), {}, ParallelPlan(**layout))
    assert str(error.value) == line


def test_other_stacks_refuse_it() -> None:
    setup = TrainingSetup(seq_len=64, stack="hf")
    with pytest.raises(NotInThisVersionError, match="valid: --stack torch"):
        plan_of(LLAMA, setup, {}, ParallelPlan(cp=2))


def test_a_run_on_a_cpu_has_no_ring() -> None:
    with pytest.raises(ConfigError, match="valid: --cp-method ulysses"):
        check_layout(Layout(cp=2), cpu_plan())
    check_layout(Layout(cp=2, cp_method="ulysses"), cpu_plan())


def test_sharing_sequences_shares_activations_and_states() -> None:
    setup = TrainingSetup(seq_len=256, micro_batch_size=2)
    alone = step_memory(plan_of(LLAMA, setup, {}, ParallelPlan(dp=4, fsdp=True)))
    for method in ("ring", "ulysses"):
        layout = ParallelPlan(cp=2, dp=2, fsdp=True, cp_method=method)
        shared = step_memory(plan_of(LLAMA, setup, {}, layout))
        assert shared.states == alone.states  # cp ranks have the same weights
        assert shared.input_bytes * 2 == alone.input_bytes
        assert shared.saved_bytes < 0.62 * alone.saved_bytes
