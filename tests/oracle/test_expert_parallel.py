"""Expert parallelism of stack torch: the harness's experts on the fake process group, and its rules.

Routing depends on data, which the fake group has not: every rank sends as many rows to each other.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from memcalc.engine.make_plan import plan_of
from memcalc.engine.memory import step_memory
from memcalc.errors import ConfigError, NotInThisVersionError
from memcalc.harness.ranks.layout import Layout
from memcalc.harness.ranks.layout_rules import check_layout
from memcalc.inputs.model import ModelConfig, MoeConfig
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.training import TrainingSetup
from tests.harness.models import LLAMA, MIXTRAL, cpu_plan
from tests.oracle.support.data_parallel import differences, engine_plan, first_difference
from tests.oracle.support.rank_draw import RankSetup

assert MIXTRAL.moe is not None
#: Dense blocks before and after a sparse one.
MIXED_BLOCKS = replace(
    MIXTRAL, num_hidden_layers=3, moe=replace(MIXTRAL.moe, num_experts=8, sparse_layers=(1,))
)
#: Shared experts beside the routed ones, and a router that chooses groups first.
DEEPSEEK = replace(
    MIXTRAL,
    num_hidden_layers=2,
    moe=MoeConfig(
        num_experts=8, num_experts_per_tok=3, moe_intermediate_size=32, sparse_layers=(1,),
        shared_intermediate_size=48, scoring="sigmoid", fp32_router=True, expert_groups=4,
        groups_per_token=2, normalize_top_k=True,
    ),
)  # fmt: skip
SHARED_GATE = replace(
    MIXTRAL,
    num_hidden_layers=1,
    moe=replace(MIXTRAL.moe, sparse_layers=(0,), shared_intermediate_size=80,
                shared_expert_gate=True),
)  # fmt: skip


def _case(layout: Layout, config: ModelConfig = MIXTRAL, **setup: Any) -> RankSetup:
    stated = {"seq_len": 32, "micro_batch_size": 2, "precision": "bf16", **setup}
    return RankSetup(config, TrainingSetup(**stated), layout)


def _layout(dp: int, ep: int, **more: Any) -> Layout:
    return Layout(dp=dp, ep=ep, fsdp=True, **more)


MIXED: dict[str, Any] = {"precision": "bf16-mixed"}
CASES = {
    "all-ranks-share": _case(_layout(2, 2)),
    "one-expert-a-rank": _case(_layout(4, 4), **MIXED),
    "two-copies-accum": _case(_layout(4, 2), grad_accum_steps=2, **MIXED),
    "kept-full": _case(_layout(8, 4, reshard=False), MIXED_BLOCKS, recompute="full"),
    "rows-cut": _case(_layout(8, 2), **MIXED),
    "rows-cut-sac": _case(_layout(16, 4), MIXED_BLOCKS, recompute="sac"),
    "deepseek": _case(_layout(8, 4), DEEPSEEK, **MIXED),
    "no-ep-rows-cut": _case(Layout(dp=16, fsdp=True), DEEPSEEK),
    "no-ep-hsdp-rows-cut": _case(Layout(dp=16, shard=8, fsdp=True), SHARED_GATE, **MIXED),
    "shared-gate": _case(_layout(4, 2), SHARED_GATE, micro_batch_size=1),
}


@pytest.mark.parametrize("name", CASES)
def test_a_rank_takes_what_pytorch_takes(name: str) -> None:
    plan, trace = engine_plan(CASES[name]), CASES[name].run()
    assert differences(plan, trace) == {}
    if CASES[name].config is not DEEPSEEK:  # its router's view is summed where no operator is named
        assert first_difference(plan, trace) == ""


def _memory(config: ModelConfig, layout: dict[str, Any], **setup: Any) -> Any:
    stated: dict[str, Any] = {"seq_len": 64, "micro_batch_size": 2, **setup}
    parallel = ParallelPlan(**{"fsdp": True, **layout})
    return step_memory(plan_of(config, TrainingSetup(**stated), {}, parallel))


def test_sharing_experts_leaves_states_and_frees_gathered_experts() -> None:
    apart, alone = _memory(MIXTRAL, {"dp": 4, "ep": 4}), _memory(MIXTRAL, {"dp": 4})
    for name in ("parameter_bytes", "gradient_bytes", "optimizer_bytes"):
        # a quarter of everything, whichever way it is cut
        assert getattr(apart.states, name) == getattr(alone.states, name)
    assert apart.peak_bytes < alone.peak_bytes  # gathered: a quarter of the experts, not all


def test_imbalance_is_rows_of_this_ranks_experts() -> None:
    even, odd = (_memory(MIXTRAL, {"dp": 4, "ep": 4}, imbalance=f) for f in (1.0, 1.5))
    rows, h, m = 2 * 64 * 2 // 2, 64, 96
    # more rows: each is kept once as received, with its order, gate and up, both products' inputs
    per_row = 8 + 2 * (h + 2 * m + m + m)
    assert odd.saved_bytes - even.saved_bytes == rows * per_row * MIXTRAL.num_hidden_layers


def test_experts_beside_shared_sequences() -> None:
    assert _memory(MIXTRAL, {"dp": 2, "cp": 2, "ep": 4}).states == _memory(
        MIXTRAL, {"dp": 4, "ep": 4}
    ).states  # fmt: skip


def test_more_ranks_than_experts_still_share_the_experts() -> None:
    four, sixteen = (_memory(MIXTRAL, {"dp": n}).states for n in (4, 16))
    # but for the router, whose 4 rows are padded to 16
    assert sixteen.parameter_bytes * 4 < four.parameter_bytes * 1.02
    uneven = replace(MIXTRAL, moe=replace(MIXTRAL.moe, moe_intermediate_size=97))
    assert _memory(uneven, {"dp": 16}).states.parameter_bytes > 2 * sixteen.parameter_bytes


@pytest.mark.parametrize(
    ("config", "layout", "line"),
    [
        (MIXTRAL, {"dp": 8, "ep": 3},
         "ep: got 3; rule: divides 4 experts and the 8 ranks of dp x cp x tp; valid: 1, 2, 4"),
        (MIXTRAL, {"dp": 2, "ep": 4},
         "ep: got 4; rule: divides 4 experts and the 2 ranks of dp x cp x tp; valid: 1, 2"),
        (LLAMA, {"dp": 2, "ep": 2}, "ep: got 2; rule: small-llama has no experts; valid: 1"),
        (MIXTRAL, {"dp": 4, "ep": 2, "fsdp": False},
         "ep: got 2 without fsdp; rule: experts need --fsdp"),
        (MIXTRAL, {"dp": 4, "ep": 2, "shard": 2},
         "shard: got 2 with ep 2; rule: all ranks; valid: 4"),
        (MIXTRAL, {"dp": 8, "ep": 2, "reshard": 4},
         "reshard: got 4 with ep 2; valid: true, false"),
        (MIXTRAL, {"dp": 512, "ep": 4},
         "ep: got 4 over 512 ranks; rule: the 128 ranks with the same experts divide their rows, "
         "192 and 64"),
    ],
)  # fmt: skip
def test_layouts_that_cannot_be_are_refused_in_a_line(
    config: ModelConfig, layout: dict[str, Any], line: str
) -> None:
    with pytest.raises(ConfigError) as error:
        _memory(config, layout)
    assert str(error.value) == line


@pytest.mark.parametrize(
    ("layout", "setup", "words"),
    [
        ({"dp": 4, "ep": 2, "etp": 2}, {}, "etp: got 2 on stack torch; rule: an expert is whole"),
        ({"dp": 4, "ep": 2}, {"stack": "hf"}, "ep: got 2 on stack hf; rule: not in this version"),
    ],
)
def test_what_is_not_there_yet_says_so(
    layout: dict[str, Any], setup: dict[str, Any], words: str
) -> None:
    with pytest.raises(NotInThisVersionError) as error:
        _memory(MIXTRAL, layout, **setup)
    assert words in str(error.value)


def test_a_run_spreads_experts_over_ranks_of_dp_alone() -> None:
    check_layout(Layout(dp=4, ep=2, fsdp=True), cpu_plan(MIXTRAL))
    for more in ({"cp": 2}, {"tp": 2}, {"shard": 2}, {"reshard": 4}):
        with pytest.raises(ConfigError, match="ep: got 2 with"):
            Layout(dp=4, ep=2, fsdp=True, **more)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="grad-clip"):
        check_layout(Layout(dp=4, ep=2, fsdp=True), cpu_plan(MIXTRAL, grad_clip=True))
