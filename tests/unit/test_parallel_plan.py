"""ParallelPlan: degrees fill each other in, and what does not go together is refused in one line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memcalc.engine.parallel.local import local_values
from memcalc.errors import ConfigError
from memcalc.inputs.parallel import ParallelPlan, divisors, stated, with_degrees


def test_gpus_fill_in_dp_and_degrees_fill_in_gpus() -> None:
    assert with_degrees(ParallelPlan(gpus=64, tp=8, pp=2)).dp == 4
    assert with_degrees(ParallelPlan(tp=8, pp=2, cp=2, dp=3)).gpus == 96
    assert with_degrees(ParallelPlan(gpus=8)).dp == 8
    alone = with_degrees(ParallelPlan())
    assert (alone.gpus, alone.dp, alone.is_single) == (1, 1, True)


@given(*(st.integers(1, 16) for _ in range(4)))
def test_the_product_of_the_degrees_is_the_number_of_gpus(
    tp: int, pp: int, cp: int, dp: int
) -> None:
    plan = with_degrees(ParallelPlan(tp=tp, pp=pp, cp=cp, dp=dp))
    assert plan.gpus == plan.size == tp * pp * cp * dp
    assert with_degrees(ParallelPlan(tp=tp, pp=pp, cp=cp, gpus=plan.gpus)).dp == dp


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"gpus": 12, "tp": 8}, "tp: got 8; rule: tp x pp x cp divides 12 GPUs; valid: 1, 2, 3, 4, 6, 12"),
        ({"gpus": 16, "pp": 4, "dp": 3}, "dp: got 3; rule: tp x pp x cp x dp = 16 GPUs; valid: 4"),
        ({"tp": 0}, "tp: got 0; rule: 1 to"),
        ({"zero": 4}, "zero: got 4; rule: 0, 1, 2 or 3"),
        ({"zero": 1, "fsdp": True}, "zero: got 1 with fsdp"),
        ({"sp": True}, "sp: got tp 1"),
        ({"vpp": 2, "pp": 2}, "vpp: got 2 with schedule 1f1b"),
        ({"vpp": 3, "pp": 2, "schedule": "zb-v"}, "vpp: got 3; rule: zb-v has 2 chunks a rank"),
        ({"schedule": "1f1c"}, "schedule"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(fields: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        with_degrees(ParallelPlan(**fields))  # type: ignore[arg-type]
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_fsdp_is_stage_three_and_chunked_schedules_have_their_chunks() -> None:
    assert with_degrees(ParallelPlan(dp=2, fsdp=True)).zero == 3
    assert with_degrees(ParallelPlan(pp=4, schedule="zb-v")).vpp == 2
    assert with_degrees(ParallelPlan(pp=4, schedule="interleaved", vpp=3)).chunks == 12
    assert with_degrees(ParallelPlan(schedule="interleaved", vpp=3)).chunks == 1


def test_a_sharding_group_is_all_copies_unless_said() -> None:
    assert with_degrees(ParallelPlan(dp=16, fsdp=True)).shard_ranks == 16
    assert with_degrees(ParallelPlan(dp=8, cp=2, fsdp=True)).shard_ranks == 16
    assert with_degrees(ParallelPlan(dp=16, fsdp=True, shard=8)).shard_ranks == 8


def test_only_what_was_stated_is_stated() -> None:
    assert stated(ParallelPlan()) == {}
    assert stated(ParallelPlan(tp=8, sp=False)) == {"tp": 8, "sp": False}


@given(st.integers(1, 10_000))
def test_divisors_are_all_and_in_order(number: int) -> None:
    assert divisors(number) == [n for n in range(1, number + 1) if number % n == 0]


def test_a_rank_of_a_layer_holds_its_part_and_keeps_what_is_not_divided() -> None:
    whole = {"a": 32, "k": 8, "g": 4, "f": 8192, "V": 128_256, "s": 4096, "h": 2048, "b": 2}
    own = local_values(whole, ParallelPlan(tp=4, cp=2))
    divided = {"a": 8, "k": 2, "f": 2048, "V": 32_064, "s": 2048}
    assert own == whole | divided | {"tp": 4}
    split = local_values(whole, ParallelPlan(tp=4, sp=True))
    assert split["s"] == 4096 and split["s_t"] == 1024
    assert local_values(whole, ParallelPlan()) == whole
    assert local_values(whole, ParallelPlan(tp=16))["k"] == 1  # fewer heads than ranks: one each
